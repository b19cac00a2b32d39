_base_ = ['_knet_resnet50.py', '_pretrain.py']

detector = _base_.model
detector.rpn_head.num_classes = 1
detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=detector,
    frozen_stages=3,
    prompts=dict(levels=(-1,), detach=False, strategy='cosine', drop_rate=0.0, inject='init'),
    supervision=dict(seed_channels=1024),
)
train_dataloader = dict(batch_size=32)
