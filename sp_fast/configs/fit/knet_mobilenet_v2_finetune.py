_base_ = ['../_base_/knet_mobilenet_v2.py', '../_base_/fit_finetune.py']

optim_wrapper = dict(optimizer=dict(lr=2e-4))
