# The paper's setting for QueryInst; gradient clipping and the backbone's learning rate are QueryInst's.
# Masks: sp-fast propose data/unlabeled2017 --weights densecl_r50.pth --out masks.json
_base_ = ['../_base_/queryinst_r50.py', '../_base_/pretrain.py', '../_base_/runtime.py']

detector = _base_.model
detector.roi_head.bbox_head.num_classes = detector.roi_head.mask_head.num_classes = 1
model = dict(
    _delete_=True, type='SaliencyPromptPretrainer', detector=detector, supervision=dict(seed_channels=2048)
)
optim_wrapper = _base_.optimiser
