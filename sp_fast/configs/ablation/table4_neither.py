# Table 4: neither prompts nor kernel supervision, pre-training on the masks alone.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='none'), supervision=None)
