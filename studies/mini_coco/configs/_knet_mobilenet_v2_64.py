# For a CPU: 40 kernels of 64 channels on ImageNet's MobileNetV2, which is frozen in fine-tuning too.
_base_ = ['mobilenet_v2.py']

title = 'K-Net of 64 channels, MobileNetV2 (ImageNet, frozen)'
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
pretrain = dict(batch_size=16, lr=5e-4)
finetune = dict(lr=5e-4)
