# 5 % of COCO: 92 epochs as in UPLVP, since the paper does not say. Warm-up of 1,000 steps as in the paper (UPLVP: 100).
_base_ = ['finetune.py']

train_dataloader = dict(
    dataset=dict(
        ann_file='data/coco/annotations/instances_train2017.5.json', pipeline=_base_.rotated_pipeline
    ),
)
train_cfg = dict(max_epochs=92, val_interval=23)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
param_scheduler[1].update(end=92, milestones=[72, 88])
