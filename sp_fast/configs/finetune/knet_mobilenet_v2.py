# Fine-tunes the result of pretrain/knet_mobilenet_v2.py on a few labelled images; runs on a CPU.
_base_ = ['../_base_/knet_mobilenet_v2.py', '../_base_/finetune.py', '../_base_/runtime.py']

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (320, 320)
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-4))
default_hooks = dict(logger=dict(interval=10))
