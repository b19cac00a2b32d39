# K-Net on ResNet-50, with the settings of its authors: 100 kernels of 256 channels, three update stages.
custom_imports = dict(imports=['sp_fast.models'])

num_classes = 80
num_stages = 3
model = dict(
    type='KNet',
    data_preprocessor=dict(
        type='BatchPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
    ),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    rpn_head=dict(
        type='ConvKernelHead',
        num_proposals=100,
        in_channels=256,
        out_channels=256,
        num_classes=num_classes,
        localization_fpn=dict(
            type='SemanticFPNWrapper',
            in_channels=256,
            feat_channels=256,
            out_channels=256,
            positional_encoding=dict(type='SinePositionalEncoding', num_feats=128, normalize=True),
            norm_cfg=dict(type='GN', num_groups=32),
        ),
        norm_cfg=dict(type='GN', num_groups=32),
        loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_dice=dict(type='DiceLoss', loss_weight=4.0),
        loss_seg=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    ),
    roi_head=dict(
        type='KernelIterHead',
        num_stages=num_stages,
        stage_loss_weights=[1] * num_stages,
        mask_head=dict(
            type='KernelUpdateHead',
            num_classes=num_classes,
            in_channels=256,
            num_heads=8,
            feedforward_channels=2048,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
            loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
            loss_dice=dict(type='DiceLoss', loss_weight=4.0),
        ),
    ),
    train_cfg=dict(
        assigner=dict(type='BatchedMaskAssigner', cls_weight=2.0, dice_weight=4.0, mask_weight=1.0)
    ),
    test_cfg=dict(max_per_img=100, mask_thr=0.5),
)
