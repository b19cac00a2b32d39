# mmdet's Mask2Former on ResNet-50, for instances only: 100 queries of 256 channels, nine decoder layers.
custom_imports = dict(imports=['sp_fast.models'])

# Not an import statement: mmengine would treat this file as a lazy config.
model = __import__('sp_fast.configs').configs.model_of_mmdet('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
model['backbone'].pop('init_cfg')  # weights are given by --weights
model['data_preprocessor'].pop('batch_augments')  # pad to the largest image of the batch, not to a fixed size
# As in mmdet, but without waiting for the GPU at every image.
model['data_preprocessor']['type'] = 'BatchPreprocessor'
model['panoptic_head']['type'] = 'BatchedMask2FormerHead'
model['panoptic_head']['pixel_decoder']['type'] = 'BatchedPixelDecoder'

# Gradient clipping, learning rates and weight decay as in mmdet's config, for the training configs.
embedding = dict(lr_mult=1.0, decay_mult=0.0)
optimiser = dict(
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), query_embed=embedding, query_feat=embedding, level_embed=embedding
        ),
        norm_decay_mult=0.0,
    ),
)
# In place of Resize, as in mmdet's config: crops of 1024 pixels at 0.1 to 2 times the size.
large_scale_jitter = [
    dict(
        type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), resize_type='Resize', keep_ratio=True
    ),
    dict(
        type='RandomCrop',
        crop_size=(1024, 1024),
        crop_type='absolute',
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
]
