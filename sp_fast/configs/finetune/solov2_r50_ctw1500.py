# SOLOv2 on CTW1500. UPLVP: 80 epochs.
# Start: --weights densecl_r50.pth
_base_ = ['../_base_/solov2_r50.py', '../_base_/finetune_ctw1500.py', '../_base_/runtime.py']

train_dataloader = dict(batch_size=2, dataset=dict(pipeline=_base_.train_pipeline))
optim_wrapper = dict(_delete_=True, **_base_.optimiser)
