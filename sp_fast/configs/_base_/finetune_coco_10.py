# 10 % of COCO: 48 epochs. Warm-up of 1,000 steps as in the paper (UPLVP: 100).
_base_ = ['finetune.py']

train_dataloader = dict(dataset=dict(pipeline=_base_.rotated_pipeline))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
