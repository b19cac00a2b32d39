# Table 4: prompts without kernel supervision.
_base_ = ['../pretrain/knet_r50.py']

model = dict(supervision=None)
