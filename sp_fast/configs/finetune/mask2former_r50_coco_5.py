# Mask2Former on 5 % of COCO.
# Start: --load-from runs/mask2former_r50/pretrain/pretrained.pth
_base_ = ['../_base_/mask2former_r50.py', '../_base_/finetune_coco_5.py', '../_base_/runtime.py']

read, annotate, _, flip, *rest = _base_.rotated_pipeline
pipeline = [read, annotate, flip, *_base_.large_scale_jitter, *rest]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
optim_wrapper = _base_.optimiser
