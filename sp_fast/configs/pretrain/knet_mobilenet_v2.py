# A small setting for your own images: MobileNetV2, 320 pixels, 40 kernels of 128 channels; runs on a CPU.
_base_ = ['../_base_/knet_mobilenet_v2.py', '../_base_/pretrain.py', '../_base_/runtime.py']

detector = _base_.model
detector.rpn_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=detector,
    prompts=dict(fold='mean'),
    supervision=dict(seed_channels=320),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (320, 320)
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=0.01, end=50)
default_hooks = dict(logger=dict(interval=10))
