_base_ = ['_knet_mobilenet_v2_64.py', '_pretrain.py']

detector = _base_.model
detector.rpn_head.num_classes = 1
detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=detector,
    frozen_stages=4,
    prompts=dict(levels=(-1,), detach=False, strategy='cosine', drop_rate=0.0, inject='init'),
    supervision=dict(seed_channels=320),
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
