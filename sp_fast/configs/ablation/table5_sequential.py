# Table 5: kernel n takes prompt n modulo their number.
_base_ = ['../pretrain/knet_r50.py']

model = dict(prompts=dict(strategy='sequential'))
