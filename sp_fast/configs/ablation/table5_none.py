# Table 5: no prompts.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='none'))
