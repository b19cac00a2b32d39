# The demo's pre-training with saliency prompts, on the masks and seeds of `sp-fast propose`.
_base_ = ['_demo.py']

max_iters = 800
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=_base_.model,
    prompts=dict(levels=(1,), fold='mean'),  # P3: the coarsest map has only 4 x 4 cells at 128 pixels
    supervision=dict(seed_channels=64),
)
train_dataloader = dict(
    dataset=dict(
        ann_file='runs/demo/proposals.json',
        images='runs/demo/set/unlabelled',
        seeds='runs/demo/proposals.seeds.safetensors',
    ),
)
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=max_iters)
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=max_iters, T_max=max_iters - 50)
custom_hooks = [dict(type='StopOnNonFiniteLossHook'), dict(type='ExportPretrainedHook')]
