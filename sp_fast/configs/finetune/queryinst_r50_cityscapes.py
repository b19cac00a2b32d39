# QueryInst on Cityscapes, with a later first drop than other models, as in UPLVP, which has no warm-up.
# Start: --load-from runs/queryinst_r50/pretrain/pretrained.pth
_base_ = ['../_base_/queryinst_r50.py', '../_base_/finetune_cityscapes.py', '../_base_/runtime.py']

optim_wrapper = _base_.optimiser
param_scheduler = _base_.param_scheduler
param_scheduler[1].milestones = [18, 22]
