# K-Net on MobileNetV2, for small machines. Published weights in torchvision's format fit the backbone.
_base_ = ['knet_r50.py']

model = dict(
    backbone=dict(_delete_=True, type='TorchvisionMobileNetV2', frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
