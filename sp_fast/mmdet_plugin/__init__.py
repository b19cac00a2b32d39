"""What plugs into mmdet and mmengine: data sets, transforms, metrics, hooks, backbones and the runner."""

import sp_fast.mmcv_bridge  # noqa: F401  (gives mmdet the ops it imports)
