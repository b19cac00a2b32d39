# K-Net on 5 % of COCO.
# Start: --load-from runs/knet_r50/pretrain/pretrained.pth
_base_ = ['../_base_/knet_r50.py', '../_base_/finetune_coco_5.py', '../_base_/runtime.py']
