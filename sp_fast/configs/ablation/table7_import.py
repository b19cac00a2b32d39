# Table 7: another method's masks (FreeSOLO's in the paper) as pseudo labels, in COCO format.
# Without prompts: --cfg-options model.prompts.strategy=none
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='import')
train_dataloader = dict(dataset=dict(ann_file='freesolo.json', seeds=None))
