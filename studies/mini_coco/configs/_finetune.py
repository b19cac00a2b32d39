# Fine-tuning on labelled images, with the learning rate's drops where the paper's 48 epochs have them. Measured half-way
# and at the end.
_base_ = ['_common.py']

max_iters = 240
val_evaluator = [
    dict(type='ClassAgnosticCocoMetric', ann_file='val.json'),
    dict(type='InstanceMetric', ann_file='val.json'),
]
test_evaluator = val_evaluator
train_cfg = dict(type='StepTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
optim_wrapper = dict(
    clip_grad=dict(max_norm=4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.25))),
)
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
custom_hooks = [dict(type='StopOnNonFiniteLossHook')]
