# QueryInst on 5 % of COCO.
# Start: --load-from runs/queryinst_r50/pretrain/pretrained.pth
_base_ = ['../_base_/queryinst_r50.py', '../_base_/finetune_coco_5.py', '../_base_/runtime.py']

optim_wrapper = _base_.optimiser
