# The demo's fine-tuning on a few labelled scenes, with class-agnostic mask AP.
_base_ = ['_demo.py']

max_iters = 300
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        ann_file='runs/demo/set/validation.json',
        images='runs/demo/set/validation',
        class_agnostic=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='ClassAgnosticCocoMetric', ann_file='runs/demo/set/validation.json')]
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=max_iters, val_interval=75)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=2e-5),
]
