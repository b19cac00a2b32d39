# Shared by pre-training and fine-tuning of the demo: 128-pixel scenes, one thread, batches of 8.
_base_ = ['../_base_/knet_demo.py', '../_base_/finetune.py', '../_base_/runtime.py']

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (128, 128)
train_pipeline[3] = dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical'])
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        ann_file='runs/demo/set/labelled.json',
        images='runs/demo/set/labelled',
        class_agnostic=True,
        pipeline=train_pipeline,
    ),
)
from_scratch = True  # needs no --weights
# The statistics of batch norm have to be learned then.
model = dict(backbone=dict(norm_eval=False))
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=None)
max_iters = 300
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=2e-5),
]
log_processor = dict(window_size=20)
default_hooks = dict(logger=dict(interval=10))
