# Table 7: random boxes as pseudo labels.
# Boxes: sp-fast random-boxes data/unlabeled2017 --out random.json
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='import')
train_dataloader = dict(dataset=dict(ann_file='random.json', seeds=None))
