# CTW1500: 96 epochs, with drops in proportion to UPLVP's (72, 88 of 92); 4 images per GPU and a warm-up of 100 steps as in
# UPLVP, since 96 epochs of 1,000 images are 1,056 steps of 96. Labels refer to the pixels as stored: EXIF is ignored.
_base_ = ['finetune.py']

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        ann_file='data/ctw1500/instances_training.json',
        images='data/ctw1500/imgs/training',
        exif='ignore',
        pipeline=_base_.rotated_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file='data/ctw1500/instances_test.json',
        images='data/ctw1500/imgs/test',
        exif='ignore',
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='InstanceMetric', ann_file='data/ctw1500/instances_test.json'),
    dict(type='ClassAgnosticCocoMetric', ann_file='data/ctw1500/instances_test.json'),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=96, val_interval=24)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=96, milestones=[75, 92])
