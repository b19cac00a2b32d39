# Cityscapes: 24 epochs, with each image 8 times per epoch as in UPLVP. Without repetition, 24 epochs of 2,975 images are
# 744 steps of 96 images, fewer than the warm-up. UPLVP has 4 images per GPU, a warm-up of 100 steps and no rotation.
_base_ = ['finetune.py']

annotations = 'data/cityscapes/annotations/instancesonly_filtered_gtFine_{}.json'
train_pipeline, rotated_pipeline = _base_.train_pipeline, _base_.rotated_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2] = rotated_pipeline[2] = dict(
    type='RandomResize', scale=[(2048, 800), (2048, 1024)], resize_type='Resize', keep_ratio=True
)
test_pipeline[1].scale = (2048, 1024)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=8,
        dataset=dict(
            type='InstanceDataset',
            ann_file=annotations.format('train'),
            images='data/cityscapes/leftImg8bit/train',
            pipeline=rotated_pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file=annotations.format('val'),
        images='data/cityscapes/leftImg8bit/val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='InstanceMetric', ann_file=annotations.format('val')),
    dict(type='ClassAgnosticCocoMetric', ann_file=annotations.format('val')),
]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=24, val_interval=6)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 1000
param_scheduler[1].update(end=24, milestones=[16, 22])
