_base_ = ['../../../sp_fast/configs/_base_/knet_mobilenet_v2_64.py', '_pretrain.py']

detector = _base_.model
detector.backbone.frozen_stages = 4
detector.rpn_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True, type='SaliencyPromptPretrainer', detector=detector, supervision=dict(seed_channels=320)
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
