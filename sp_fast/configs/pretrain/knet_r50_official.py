# As in the authors' released code: frozen backbone; prompts from P5, detached, added to the kernels after
# the first head; a tenth of them dropped. Masks: sp-fast propose ... --preset official
_base_ = ['knet_r50.py']

model = dict(preset='official')
