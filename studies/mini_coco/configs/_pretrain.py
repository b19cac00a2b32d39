# Pre-training on pseudo labels, with the learning rate's drops where the paper's 12 epochs have them. Measured without
# prompts at its end, class-agnostically.
_base_ = ['_finetune.py']

max_iters = 600
train_dataloader = dict(
    dataset=dict(seeds='masks.seeds.safetensors', class_agnostic=True, tight_boxes=True),
)
val_dataloader = dict(dataset=dict(class_agnostic=True))
test_dataloader = val_dataloader
val_evaluator = [dict(type='ClassAgnosticCocoMetric', ann_file='val.json')]
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=max_iters)
optim_wrapper = dict(clip_grad=dict(max_norm=1), paramwise_cfg=None)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = max_iters // 20
param_scheduler[1].update(end=max_iters, milestones=[max_iters * 8 // 12, max_iters * 11 // 12])
custom_hooks = [dict(type='StopOnNonFiniteLossHook'), dict(type='ExportPretrainedHook')]
