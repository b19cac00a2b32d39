# Fine-tunes the result of pretrain/knet_mobilenet_v2.py on a few labelled images; runs on a CPU.
_base_ = ['../_base_/knet_mobilenet_v2.py', '../_base_/finetune.py', '../_base_/runtime.py']

image_scale = (320, 320)
train_pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInstances'),
]
test_pipeline = [
    dict(type='ReadImage'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackInstances', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-4))
default_hooks = dict(logger=dict(interval=10))
