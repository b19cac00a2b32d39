# As the authors' released code does it: frozen backbone, prompts of P5, detached, onto the kernels after
# the first head, a tenth of them dropped. Masks: sp-fast propose ... --preset official
_base_ = ['knet_r50.py']

model = dict(
    detector=dict(backbone=dict(frozen_stages=4)),
    prompts=dict(levels=(-1,), detach=True, strategy='cosine', drop_rate=0.1, inject='proposal'),
)
