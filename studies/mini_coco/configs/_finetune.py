# Fine-tuning on labelled images kept in memory, with batches of one orientation, and with the learning rate's drops where
# the paper's 48 epochs have them. Measured half-way and at the end. Files are given on the command line; the experiment
# sets the size of the images.
_base_ = ['../../../sp_fast/configs/_base_/finetune.py', '../../../sp_fast/configs/_base_/runtime.py']

max_iters = 240
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = 160
train_dataloader = dict(
    batch_size=16,
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
    dict(type='ClassAgnosticCocoMetric', ann_file='val.json'),
    dict(type='InstanceMetric', ann_file='val.json'),
]
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=max_iters // 20),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[max_iters * 36 // 48, max_iters * 44 // 48],
        gamma=0.1,
    ),
]
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)
