_base_ = ['../_base_/knet_mobilenet_v2.py', '../_base_/fit_pretrain.py']

detector = _base_.model
detector.rpn_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=detector,
    prompts=dict(fold='mean'),
    supervision=dict(seed_channels=320),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
