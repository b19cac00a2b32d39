# Fine-tuning of `sp-fast fit`, which sets the size, the number of kernels, the batch and the files from the data.
_base_ = ['finetune.py', 'runtime.py']

max_iters = 600
warmup = max_iters // 20
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
# One image per batch: its result then depends on no other image's padding.
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='InstanceMetric', ann_file='val.json'),
    dict(type='ClassAgnosticCocoMetric', ann_file='val.json'),
]
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=max_iters, val_interval=max_iters // 3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup,
        end=max_iters,
        T_max=max_iters - warmup,
        eta_min=1e-6,
    ),
]
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)
