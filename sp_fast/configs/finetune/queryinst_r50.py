# QueryInst on 10 % of COCO. UPLVP: weight decay 1e-4.
# Start: --load-from runs/queryinst_r50/pretrain/pretrained.pth
_base_ = ['../_base_/queryinst_r50.py', '../_base_/finetune_coco_10.py', '../_base_/runtime.py']

optim_wrapper = _base_.optimiser
