# K-Net on 10 % of COCO, 12 images per GPU.
# Start: --load-from runs/knet_r50/pretrain/pretrained.pth
_base_ = ['../_base_/knet_r50.py', '../_base_/finetune_coco_10.py', '../_base_/runtime.py']
