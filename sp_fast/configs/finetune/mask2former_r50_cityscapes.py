# Mask2Former on Cityscapes, in crops and tested on smaller images as in UPLVP.
# Start: --load-from runs/mask2former_r50/pretrain/pretrained.pth
_base_ = ['../_base_/mask2former_r50.py', '../_base_/finetune_cityscapes.py', '../_base_/runtime.py']

read, annotate, _, flip, *rest = _base_.rotated_pipeline
pipeline = [read, annotate, flip, *_base_.large_scale_jitter, *rest]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (1333, 800)
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
optim_wrapper = _base_.optimiser
