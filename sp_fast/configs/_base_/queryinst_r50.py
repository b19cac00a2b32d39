# mmdet's QueryInst on ResNet-50: 100 proposal features of 256 channels, six stages.
custom_imports = dict(imports=['sp_fast.models'])

# Not an import statement: mmengine would treat this file as a lazy config.
model = __import__('sp_fast.configs').configs.model_of_mmdet('queryinst/queryinst_r50_fpn_1x_coco.py')
model['backbone'].pop('init_cfg')  # weights are given by --weights
# As in mmdet, but without waiting for the GPU at every image.
model['data_preprocessor']['type'] = 'BatchPreprocessor'
model['rpn_head']['type'], model['roi_head']['type'] = 'BatchedRPNHead', 'BatchedQueryInstHead'
# mmdet repeats the same head six times; one is enough for all stages.
for head in ('bbox_head', 'mask_head'):
    model['roi_head'][head] = model['roi_head'][head][0]

# Gradient clipping and learning rate of the backbone as in mmdet's config, for the training configs.
optimiser = dict(
    clip_grad=dict(max_norm=0.1), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
)
