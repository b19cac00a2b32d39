# A small K-Net for 128-pixel scenes on a CPU: 20 kernels of 64 channels, three update stages.
_base_ = ['knet_r50.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=16,
        norm_cfg=dict(type='BN', requires_grad=True),
        # In training from scratch, batch norm then only scales and shifts: no statistics of small batches or
        # that differ between processes.
        norm_eval=True,
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=64),
    rpn_head=dict(
        num_proposals=20,
        in_channels=64,
        out_channels=64,
        num_classes=1,
        localization_fpn=dict(
            in_channels=64,
            feat_channels=64,
            out_channels=64,
            positional_encoding=dict(num_feats=32),
            norm_cfg=dict(num_groups=8),
        ),
        norm_cfg=dict(num_groups=8),
    ),
    roi_head=dict(
        mask_head=dict(num_classes=1, in_channels=64, num_heads=4, feedforward_channels=256),
    ),
    test_cfg=dict(max_per_img=20),
)
