"""The mmdet plug-in: importing this package registers models, data sets, transforms and hooks with mmdet."""

from sp_fast.models.mmcv_bridge import install

# Before anything that imports mmdet: without it mmdet.models does not import on mmcv-lite.
install()

import sp_fast.data.datasets  # noqa: E402
import sp_fast.data.metrics  # noqa: E402
import sp_fast.data.transforms  # noqa: E402
import sp_fast.models.backbone  # noqa: E402
import sp_fast.models.hooks  # noqa: E402
import sp_fast.models.knet  # noqa: E402,F401
