"""Config of a small K-Net, and data samples for it."""

import sp_fast.models  # noqa: F401  # before mmdet: provides what mmcv-lite lacks

# isort: split
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData


def knet_config(
    channels=16,
    num_proposals=6,
    num_classes=3,
    num_heads=2,
    feedforward_channels=32,
    num_stages=2,
    gn_groups=4,
    positional_num_feats=None,
):
    """Config of a K-Net with these widths on a very narrow ResNet-18."""
    norm = dict(type="GN", num_groups=gn_groups)
    encoding = dict(
        type="SinePositionalEncoding", num_feats=positional_num_feats or channels // 2, normalize=True
    )
    return dict(
        type="KNet",
        data_preprocessor=dict(type="mmdet.DetDataPreprocessor", pad_size_divisor=32),
        backbone=dict(type="ResNet", depth=18, base_channels=4, norm_eval=True),
        neck=dict(type="FPN", in_channels=[4, 8, 16, 32], out_channels=channels, num_outs=4),
        rpn_head=dict(
            type="ConvKernelHead",
            num_proposals=num_proposals,
            in_channels=channels,
            out_channels=channels,
            num_classes=num_classes,
            norm_cfg=norm,
            localization_fpn=dict(
                type="SemanticFPNWrapper",
                in_channels=channels,
                feat_channels=channels,
                out_channels=channels,
                positional_encoding=encoding,
                norm_cfg=norm,
            ),
        ),
        roi_head=dict(
            type="KernelIterHead",
            num_stages=num_stages,
            mask_head=dict(
                type="KernelUpdateHead",
                num_classes=num_classes,
                in_channels=channels,
                num_heads=num_heads,
                feedforward_channels=feedforward_channels,
            ),
        ),
        test_cfg=dict(max_per_img=10),
    )


def random_sample(generator, count, shape=(64, 96), num_classes=3, ori_shape=None):
    """A data sample with `count` rectangles in an image of `shape`."""
    height, width = shape
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        y, x = (int(torch.randint(0, size // 2, (), generator=generator)) for size in shape)
        mask[y : y + height // 3, x : x + width // 3] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=shape,
            ori_shape=ori_shape or shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.zeros(count, 4),
        labels=torch.randint(0, num_classes, (count,), generator=generator),
        masks=BitmapMasks(masks, height, width),
    )
    return sample
