# K-Net on Cityscapes.
# Start: --load-from runs/knet_r50/pretrain/pretrained.pth
_base_ = ['../_base_/knet_r50.py', '../_base_/finetune_cityscapes.py', '../_base_/runtime.py']
