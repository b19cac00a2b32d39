# K-Net on CTW1500, tested on larger images as in UPLVP.
# Start: --load-from runs/knet_r50/pretrain/pretrained.pth
_base_ = ['../_base_/knet_r50.py', '../_base_/finetune_ctw1500.py', '../_base_/runtime.py']

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (1600, 1600)
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
