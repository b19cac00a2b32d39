# Table 7: another method's masks as pseudo labels, without prompts (and so without kernel supervision).
_base_ = ['../pretrain/knet_r50.py']

model = dict(source='import', prompts=dict(strategy='none'), supervision=None)
train_dataloader = dict(dataset=dict(ann_file='freesolo.json', seeds=None))
