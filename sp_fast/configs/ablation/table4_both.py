# Table 4: prompts and kernel supervision, the method itself.
_base_ = ['../pretrain/knet_r50.py']
