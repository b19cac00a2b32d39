# Table 5: every kernel takes the most similar prompt.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='cosine'))
