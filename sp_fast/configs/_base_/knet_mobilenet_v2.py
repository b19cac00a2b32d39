# K-Net on MobileNetV2 for small machines: 40 kernels of 128 channels. Published weights in torchvision's
# format fit the backbone.
_base_ = ['knet_r50.py']

model = dict(
    backbone=dict(_delete_=True, type='TorchvisionMobileNetV2', frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[24, 32, 96, 320], out_channels=128),
    rpn_head=dict(
        num_proposals=40,
        in_channels=128,
        out_channels=128,
        localization_fpn=dict(
            in_channels=128,
            feat_channels=128,
            out_channels=128,
            positional_encoding=dict(num_feats=64),
        ),
    ),
    roi_head=dict(mask_head=dict(in_channels=128, feedforward_channels=512)),
)
