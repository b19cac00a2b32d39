_base_ = ['../_base_/knet_mobilenet_v2_64.py', '../_base_/fit_finetune.py']

optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=None)
