# mmdet's QueryInst on ResNet-50: 100 proposal features of 256 channels, six stages.
custom_imports = dict(imports=['sp_fast.models'])

# Not an import statement: mmengine would treat this file as a lazy config.
model = __import__('sp_fast.configs').configs.model_of_mmdet('queryinst/queryinst_r50_fpn_1x_coco.py')
model['backbone'].pop('init_cfg')  # weights are given by --weights
# mmdet repeats the same head six times; one is enough for all stages.
for head in ('bbox_head', 'mask_head'):
    model['roi_head'][head] = model['roi_head'][head][0]
