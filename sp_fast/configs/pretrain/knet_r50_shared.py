# Proposals are made in each training step from the features of the frozen backbone: no masks on disk.
# To train the backbone too: --cfg-options model.source=teacher model.frozen_stages=1
_base_ = ['knet_r50.py']

train_pipeline = [step for step in _base_.train_pipeline if step.type != 'LoadInstances']
train_dataloader = dict(
    dataset=dict(_delete_=True, type='ImageFolderDataset', images='data/unlabeled2017', pipeline=train_pipeline),
)
model = dict(source='shared', frozen_stages=4)
