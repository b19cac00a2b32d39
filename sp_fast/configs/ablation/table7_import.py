# Table 7: another method's masks (FreeSOLO's in the paper) as pseudo labels, in COCO format.
# Their boxes need not be right: boxes and areas are taken from the masks.
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='import')
train_dataloader = dict(dataset=dict(ann_file='freesolo.json', seeds=None))
