# Table 7: saliency masks as pseudo labels.
# Masks: sp-fast propose data/unlabeled2017 --weights densecl_r50.pth --out masks.json
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='cached')
