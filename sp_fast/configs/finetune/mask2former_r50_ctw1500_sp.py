# Mask2Former on CTW1500 after pre-training with saliency prompts: 20 epochs.
# Start: --load-from runs/mask2former_r50/pretrain/pretrained.pth
_base_ = ['../_base_/mask2former_r50.py', '../_base_/finetune_ctw1500.py', '../_base_/runtime.py']

optim_wrapper = _base_.optimiser
train_cfg = dict(max_epochs=20, val_interval=5)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=20, milestones=[12, 18])
