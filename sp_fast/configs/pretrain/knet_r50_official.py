# As in the authors' released code: images resized to 1333 x 800 whatever their shape, flipped with probability 0.1, 6 per
# GPU; frozen backbone; prompts from P5, detached, added to the kernels after the first head; a tenth of them dropped.
# Masks: sp-fast propose ... --preset official
_base_ = ['knet_r50.py']

train_pipeline = _base_.train_pipeline
train_pipeline[2].keep_ratio = False
train_pipeline[3].prob = 0.1
train_dataloader = dict(batch_size=6, dataset=dict(pipeline=train_pipeline))
model = dict(preset='official')
