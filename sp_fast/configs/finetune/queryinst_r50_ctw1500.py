# QueryInst on CTW1500 without saliency prompts: 80 epochs.
# Start: --weights densecl_r50.pth
_base_ = ['../_base_/queryinst_r50.py', '../_base_/finetune_ctw1500.py', '../_base_/runtime.py']

optim_wrapper = _base_.optimiser
train_cfg = dict(max_epochs=80, val_interval=20)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=80, milestones=[60, 72])
