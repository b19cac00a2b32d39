# All of COCO train2017: 12 epochs, as in pre-training.
_base_ = ['finetune.py']

train_dataloader = dict(
    dataset=dict(ann_file='data/coco/annotations/instances_train2017.json', pipeline=_base_.rotated_pipeline),
)
train_cfg = dict(max_epochs=12, val_interval=4)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
param_scheduler[1].update(end=12, milestones=[8, 11])
