# mmdet's Mask R-CNN on ResNet-50, a baseline that has no queries to pre-train.
custom_imports = dict(imports=['sp_fast.models'])

# Not an import statement: mmengine would treat this file as a lazy config.
model = __import__('sp_fast.configs').configs.model_of_mmdet('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
model['backbone'].pop('init_cfg')  # weights are given by --weights

# The paper's optimiser of CNN models, for the training configs. They have 2 images per GPU: the paper does not say, and
# mmdet's learning rate of 0.02 is for 16 images per step.
optimiser = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
)
