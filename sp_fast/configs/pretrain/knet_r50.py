# The paper's setting: K-Net on a DenseCL ResNet-50, COCO unlabeled2017, batch 96 on 8 GPUs, 12 epochs.
# Masks: sp-fast propose data/unlabeled2017 --weights densecl_r50.pth --out masks.json
_base_ = ['../_base_/knet_r50.py', '../_base_/pretrain.py', '../_base_/runtime.py']

detector = _base_.model
detector.rpn_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True, type='SaliencyPromptPretrainer', detector=detector, supervision=dict(seed_channels=2048)
)
