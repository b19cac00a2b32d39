# What pre-training and fine-tuning share: images in memory, batches of one orientation, AdamW. Files are given on the
# command line; the experiment sets the size of the images.
_base_ = ['../../../sp_fast/configs/_base_/runtime_steps.py']

size = 160
train_pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInstances'),
]
test_pipeline = [
    dict(type='ReadImage'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='PackInstances', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='StepBatchSampler'),
    dataset=dict(type='InstanceDataset', ann_file='masks.json', images='images', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,  # an image's result then depends on no other image's padding
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='InstanceDataset', ann_file='val.json', images='val', test_mode=True, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='ClassAgnosticCocoMetric', ann_file='val.json')]
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1, norm_type=2),
)
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)
