# The demo's fine-tuning on a few labelled scenes, with class-agnostic mask AP.
_base_ = ['_demo.py']

max_iters = 300
test_pipeline = [
    dict(type='ReadImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='PackInstances', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='InstanceDataset',
        ann_file='runs/demo/set/validation.json',
        images='runs/demo/set/validation',
        class_agnostic=True,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='ClassAgnosticCocoMetric', ann_file='runs/demo/set/validation.json')]
test_evaluator = val_evaluator

train_cfg = dict(type='StepTrainLoop', max_iters=max_iters, val_interval=75)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=4, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=2e-5),
]
