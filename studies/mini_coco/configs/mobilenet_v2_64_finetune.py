_base_ = ['../../../sp_fast/configs/_base_/knet_mobilenet_v2_64.py', '_finetune.py']

optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=None)
