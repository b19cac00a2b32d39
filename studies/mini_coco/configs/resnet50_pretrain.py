_base_ = ['_knet_resnet50.py', '_pretrain.py']

detector = _base_.model
detector.backbone.frozen_stages = 3
detector.rpn_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True, type='SaliencyPromptPretrainer', detector=detector, supervision=dict(seed_channels=1024)
)
train_dataloader = dict(batch_size=32)
