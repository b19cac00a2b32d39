# Table 4: kernel supervision without prompts.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='none'))
