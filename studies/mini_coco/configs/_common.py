# What the study's two backbones share: lengths in images and steps are given on the command line, these are the
# settings that all variants have in common.
pretrain = dict(
    batch_size=32,
    lr=2e-4,
    weight_decay=0.05,
    backbone_lr=0.25,  # times lr; of no account while the backbone is frozen
    warm_up=0.05,  # shares of all steps
    milestones=(8 / 12, 11 / 12),  # as in the paper's 12 epochs; x0.1 at each
    max_norm=1,
)
finetune = dict(
    batch_size=16,
    lr=2e-4,
    weight_decay=0.05,
    backbone_lr=0.25,
    warm_up=0.05,
    milestones=(36 / 48, 44 / 48),  # as in the paper's 48 epochs
    max_norm=4,
)
