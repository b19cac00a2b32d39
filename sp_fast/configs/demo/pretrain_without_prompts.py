# The same pre-training on the pseudo masks alone: no prompts, no kernel loss.
_base_ = ['pretrain.py']

model = dict(prompts=dict(strategy='none'), supervision=None)
