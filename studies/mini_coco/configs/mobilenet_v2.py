# K-Net on ImageNet's MobileNetV2: 40 kernels of 128 channels.
_base_ = ['../_base_/knet_mobilenet_v2.py', '_study.py']

title = 'K-Net, MobileNetV2 (ImageNet)'
frozen_stages = 4
proposals = dict(backbone='mobilenet_v2', stage=4, weights='weights/mobilenet_v2_imagenet.pth')
