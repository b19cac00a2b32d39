# K-Net on MobileNetV2 for a CPU: kernels of 64 channels, and a frozen backbone, whose maps `--cache features` keeps.
_base_ = ['knet_mobilenet_v2.py']

model = dict(
    backbone=dict(frozen_stages=4),
    neck=dict(out_channels=64),
    rpn_head=dict(
        in_channels=64,
        out_channels=64,
        localization_fpn=dict(
            in_channels=64,
            feat_channels=64,
            out_channels=64,
            positional_encoding=dict(num_feats=32),
        ),
    ),
    roi_head=dict(mask_head=dict(in_channels=64, feedforward_channels=256)),
)
