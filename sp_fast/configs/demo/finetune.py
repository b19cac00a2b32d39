# The demo's fine-tuning on a few labelled scenes, with class-agnostic mask AP.
_base_ = ['_demo.py']

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
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=_base_.max_iters, val_interval=75)
