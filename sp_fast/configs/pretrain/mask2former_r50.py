# The paper's setting for Mask2Former; gradient clipping and learning rates are Mask2Former's. Prompts
# come from the pixel decoder's map of stride 32.
# Masks: sp-fast propose data/unlabeled2017 --weights densecl_r50.pth --out masks.json
_base_ = ['../_base_/mask2former_r50.py', '../_base_/pretrain.py', '../_base_/runtime.py']

detector = _base_.model
detector.panoptic_head.num_things_classes = detector.panoptic_fusion_head.num_things_classes = 1
detector.panoptic_head.loss_cls.class_weight = [1.0, 0.1]
model = dict(
    _delete_=True, type='SaliencyPromptPretrainer', detector=detector, supervision=dict(seed_channels=2048)
)
optim_wrapper = _base_.optimiser
