_base_ = ['_knet_resnet50.py', '_finetune.py']
