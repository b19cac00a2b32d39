# K-Net on ImageNet's ResNet-50, Caffe style, whose layer4 the weights lack. A random frozen layer4 would be noise,
# so it is left out: the features of the proposals are layer3's, and P5 is a strided convolution of C4.
_base_ = ['../_base_/knet_r50.py', '_study.py']

title = 'K-Net, ResNet-50 up to layer3 (ImageNet, Caffe style)'
frozen_stages = 3
proposals = dict(backbone='resnet50', style='caffe', stage=3, weights='weights/resnet50_caffe_to_layer3.pth')
model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(type='CaffeResNet50', _delete_=True, num_stages=3, frozen_stages=1),
    neck=dict(in_channels=[256, 512, 1024], add_extra_convs='on_input'),
)
