# Mask2Former on 10 % of COCO, as the paper's authors fine-tune it in their later code (UPLVP): 24 epochs,
# learning rate decay at 18 and 22, no warm-up, 4 images per GPU, crops of 1024 pixels at 0.1 to 2 times the size.
# Start: --load-from runs/mask2former_r50/pretrained.pth
_base_ = ['../_base_/mask2former_r50.py', '../_base_/finetune.py', '../_base_/runtime.py']

read, annotate, resize, flip, pack = _base_.train_pipeline
train_pipeline = [
    read,
    annotate,
    flip,
    dict(
        type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0), resize_type='Resize', keep_ratio=True
    ),
    dict(
        type='RandomCrop',
        crop_size=(1024, 1024),
        crop_type='absolute',
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    pack,
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(clip_grad=dict(max_norm=0.01), paramwise_cfg=_base_.paramwise_cfg)
param_scheduler = [_base_.param_scheduler[1]]
param_scheduler[0].update(end=24, milestones=[18, 22])
