# Like runtime.py, for train_cfg=dict(type='StepTrainLoop', max_iters=N), whose train_dataloader needs
# batch_sampler=dict(type='StepBatchSampler').
_base_ = ['runtime.py']

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(_delete_=True, type='TimedCheckpointHook', seconds=60),
)
log_processor = dict(by_epoch=False)
