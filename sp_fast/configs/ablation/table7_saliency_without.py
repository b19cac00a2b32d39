# Table 7: saliency masks as pseudo labels, without prompts (and so without kernel supervision).
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='cached', prompts=dict(strategy='none'), supervision=None)
