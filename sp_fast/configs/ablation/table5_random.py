# Table 5: every kernel takes any prompt of its image, drawn anew each step.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='random'))
