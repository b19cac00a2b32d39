# The paper's pre-training: 12 epochs, AdamW, random flip, batch 96 on 8 GPUs.
image_scale = (1333, 800)
train_pipeline = [
    dict(type='ReadImage', reduce=True),
    dict(type='LoadInstances'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInstances'),
]
train_dataloader = dict(
    batch_size=12,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='StepBatchSampler'),
    dataset=dict(
        type='InstanceDataset',
        ann_file='masks.json',
        images='data/unlabeled2017',
        seeds='masks.seeds.safetensors',
        class_agnostic=True,
        tight_boxes=True,
        pipeline=train_pipeline,
    ),
)
train_cfg = dict(type='StepTrainLoop', max_epochs=12)
val_cfg = None
test_cfg = None

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.25))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=0,
        end=12,
        milestones=[8, 11],
        gamma=0.1,
    ),
]
custom_hooks = [dict(type='StopOnNonFiniteLossHook'), dict(type='ExportPretrainedHook')]
