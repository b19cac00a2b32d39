# QueryInst on 10 % of COCO, as the paper's authors fine-tune it in their later code (UPLVP): 48 epochs,
# learning rate decay at 36 and 44, QueryInst's optimiser settings.
# Start: --load-from runs/queryinst_r50/pretrained.pth
_base_ = ['../_base_/queryinst_r50.py', '../_base_/finetune.py', '../_base_/runtime.py']

optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
