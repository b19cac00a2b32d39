# Pre-training of `sp-fast fit`: saliency prompts on the masks of `sp-fast propose`; measured after fine-tuning only.
_base_ = ['fit_finetune.py']

train_dataloader = dict(
    dataset=dict(seeds='masks.seeds.safetensors', class_agnostic=True, tight_boxes=True),
)
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=_base_.max_iters)
optim_wrapper = dict(clip_grad=dict(max_norm=1))
custom_hooks = [dict(type='StopOnNonFiniteLossHook'), dict(type='ExportPretrainedHook')]
