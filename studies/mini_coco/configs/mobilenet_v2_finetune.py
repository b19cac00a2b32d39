_base_ = ['../../../sp_fast/configs/_base_/knet_mobilenet_v2.py', '_finetune.py']
