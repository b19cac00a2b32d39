"""Small widths for the shipped configs, so that models run in milliseconds."""

FAMILIES = ("knet", "queryinst", "mask2former")
BASELINES = ("mask_rcnn", "solov2")
CHANNELS, KERNELS, STAGES, LAST_STAGE = 16, 6, 2, 32

BACKBONE = {"backbone.depth": 18, "backbone.base_channels": 4, "backbone.frozen_stages": -1}
MAPS = [4, 8, 16, 32]
NARROW = {
    "knet": {
        **BACKBONE,
        "neck.in_channels": MAPS,
        "neck.out_channels": CHANNELS,
        "rpn_head.num_proposals": KERNELS,
        "rpn_head.in_channels": CHANNELS,
        "rpn_head.out_channels": CHANNELS,
        "rpn_head.norm_cfg.num_groups": 4,
        "rpn_head.localization_fpn.in_channels": CHANNELS,
        "rpn_head.localization_fpn.feat_channels": CHANNELS,
        "rpn_head.localization_fpn.out_channels": CHANNELS,
        "rpn_head.localization_fpn.positional_encoding.num_feats": CHANNELS // 2,
        "rpn_head.localization_fpn.norm_cfg.num_groups": 4,
        "roi_head.num_stages": STAGES,
        "roi_head.stage_loss_weights": [1] * STAGES,
        "roi_head.mask_head.in_channels": CHANNELS,
        "roi_head.mask_head.num_heads": 2,
        "roi_head.mask_head.feedforward_channels": 32,
    },
    "queryinst": {
        **BACKBONE,
        "neck.in_channels": MAPS,
        "neck.out_channels": CHANNELS,
        "rpn_head.num_proposals": KERNELS,
        "rpn_head.proposal_feature_channel": CHANNELS,
        "roi_head.num_stages": STAGES,
        "roi_head.stage_loss_weights": [1] * STAGES,
        "roi_head.proposal_feature_channel": CHANNELS,
        "roi_head.bbox_roi_extractor.out_channels": CHANNELS,
        "roi_head.mask_roi_extractor.out_channels": CHANNELS,
        "roi_head.bbox_head.num_heads": 2,
        "roi_head.bbox_head.feedforward_channels": 32,
        "roi_head.bbox_head.in_channels": CHANNELS,
        "roi_head.bbox_head.dynamic_conv_cfg.in_channels": CHANNELS,
        "roi_head.bbox_head.dynamic_conv_cfg.feat_channels": 4,
        "roi_head.bbox_head.dynamic_conv_cfg.out_channels": CHANNELS,
        "roi_head.mask_head.num_convs": 1,
        "roi_head.mask_head.in_channels": CHANNELS,
        "roi_head.mask_head.conv_out_channels": CHANNELS,
        "roi_head.mask_head.dynamic_conv_cfg.in_channels": CHANNELS,
        "roi_head.mask_head.dynamic_conv_cfg.feat_channels": 4,
        "roi_head.mask_head.dynamic_conv_cfg.out_channels": CHANNELS,
        "test_cfg.rcnn.max_per_img": KERNELS,
    },
    "mask2former": {
        **BACKBONE,
        "panoptic_head.in_channels": MAPS,
        "panoptic_head.feat_channels": CHANNELS,
        "panoptic_head.out_channels": CHANNELS,
        "panoptic_head.num_queries": KERNELS,
        "panoptic_head.positional_encoding.num_feats": CHANNELS // 2,
        "panoptic_head.pixel_decoder.norm_cfg.num_groups": 4,
        "panoptic_head.pixel_decoder.positional_encoding.num_feats": CHANNELS // 2,
        "panoptic_head.pixel_decoder.encoder.num_layers": 1,
        "panoptic_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.embed_dims": CHANNELS,
        "panoptic_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.num_heads": 2,
        "panoptic_head.pixel_decoder.encoder.layer_cfg.ffn_cfg.embed_dims": CHANNELS,
        "panoptic_head.pixel_decoder.encoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "panoptic_head.transformer_decoder.num_layers": STAGES,
        "panoptic_head.transformer_decoder.layer_cfg.self_attn_cfg.embed_dims": CHANNELS,
        "panoptic_head.transformer_decoder.layer_cfg.self_attn_cfg.num_heads": 2,
        "panoptic_head.transformer_decoder.layer_cfg.cross_attn_cfg.embed_dims": CHANNELS,
        "panoptic_head.transformer_decoder.layer_cfg.cross_attn_cfg.num_heads": 2,
        "panoptic_head.transformer_decoder.layer_cfg.ffn_cfg.embed_dims": CHANNELS,
        "panoptic_head.transformer_decoder.layer_cfg.ffn_cfg.feedforward_channels": 32,
        "train_cfg.num_points": 256,
        "test_cfg.max_per_image": KERNELS,
    },
    "mask_rcnn": {
        **BACKBONE,
        "neck.in_channels": MAPS,
        "neck.out_channels": CHANNELS,
        "rpn_head.in_channels": CHANNELS,
        "rpn_head.feat_channels": CHANNELS,
        "roi_head.bbox_roi_extractor.out_channels": CHANNELS,
        "roi_head.mask_roi_extractor.out_channels": CHANNELS,
        "roi_head.bbox_head.in_channels": CHANNELS,
        "roi_head.bbox_head.fc_out_channels": 32,
        "roi_head.mask_head.num_convs": 1,
        "roi_head.mask_head.in_channels": CHANNELS,
        "roi_head.mask_head.conv_out_channels": CHANNELS,
        "test_cfg.rpn.max_per_img": 50,
        "test_cfg.rcnn.score_thr": 0.0,
        "test_cfg.rcnn.max_per_img": KERNELS,
    },
    "solov2": {
        **BACKBONE,
        "neck.in_channels": MAPS,
        "neck.out_channels": CHANNELS,
        "mask_head.in_channels": CHANNELS,
        "mask_head.feat_channels": 32,
        "mask_head.stacked_convs": 1,
        "mask_head.mask_feature_head.feat_channels": CHANNELS,
        "mask_head.mask_feature_head.out_channels": CHANNELS,
        "mask_head.mask_feature_head.norm_cfg.num_groups": 4,
        "test_cfg.score_thr": 0.0,
        "test_cfg.filter_thr": 0.0,
        "test_cfg.max_per_img": KERNELS,
    },
}
# The same on a MobileNetV2 of normal width.
NARROW["knet_mobilenet_v2"] = {
    name: value
    for name, value in NARROW["knet"].items()
    if not name.startswith("backbone") and name != "neck.in_channels"
}
HEADS = {
    "knet": {"rpn_head.conv_seg", *(f"roi_head.mask_head.{i}.fc_cls" for i in range(STAGES))},
    "queryinst": {
        f"roi_head.{head}"
        for i in range(STAGES)
        for head in (f"bbox_head.{i}.fc_cls", f"mask_head.{i}.conv_logits")
    },
    "mask2former": {"panoptic_head.cls_embed"},
    "mask_rcnn": {"roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"},
    "solov2": {"mask_head.conv_cls"},
}
