# Shared by pre-training and fine-tuning of the demo: 128-pixel scenes, one thread, batches of 8.
_base_ = ['../_base_/knet_demo.py', '../_base_/runtime_steps.py']

image_scale = (128, 128)
train_pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
    dict(type='PackInstances'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='StepBatchSampler'),
    dataset=dict(
        type='InstanceDataset',
        ann_file='runs/demo/set/labelled.json',
        images='runs/demo/set/labelled',
        class_agnostic=True,
        pipeline=train_pipeline,
    ),
)
# Training is from scratch: the statistics of batch norm have to be learned.
model = dict(backbone=dict(norm_eval=False))

log_processor = dict(window_size=20)
default_hooks = dict(logger=dict(interval=10))
