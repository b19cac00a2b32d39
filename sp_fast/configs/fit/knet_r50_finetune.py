_base_ = ['../_base_/knet_r50.py', '../_base_/fit_finetune.py']
