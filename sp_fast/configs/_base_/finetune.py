# Fine-tuning on 10 % of COCO as in the later code of the paper's authors (UPLVP): 48 epochs, learning rate decay at 36
# and 44, a warm-up of 100 steps, a quarter of the learning rate for the backbone. For other data, give the files on the
# command line. The paper's settings, with rotation and a longer warm-up, are in finetune_*.py.
image_scale = (1333, 800)
train_pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadInstances'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInstances'),
]
# With the paper's random rotation: as in UPLVP, by 9 degrees to either side, filled with grey (128).
rotated_pipeline = [
    *train_pipeline[:-1],
    dict(type='RotateInstances', prob=0.5, level=3),
    dict(type='TightBoxes'),
    train_pipeline[-1],
]
test_pipeline = [
    dict(type='ReadImage'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackInstances', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=12,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='StepBatchSampler'),
    dataset=dict(
        type='InstanceDataset',
        ann_file='data/coco/annotations/instances_train2017.10.json',
        images='data/coco/train2017',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='InstanceDataset',
        ann_file='data/coco/annotations/instances_val2017.json',
        images='data/coco/val2017',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='InstanceMetric', ann_file='data/coco/annotations/instances_val2017.json'),
    dict(type='ClassAgnosticCocoMetric', ann_file='data/coco/annotations/instances_val2017.json'),
]
test_evaluator = val_evaluator

train_cfg = dict(type='StepTrainLoop', max_epochs=48, val_interval=12)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=4, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.25))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=48,
        milestones=[36, 44],
        gamma=0.1,
    ),
]
custom_hooks = [dict(type='StopOnNonFiniteLossHook')]
