"""The mmdet plug-in: importing this package registers the models with mmdet."""

from sp_fast.models.mmcv_bridge import install

# Before anything that imports mmdet: without it mmdet.models does not import on mmcv-lite.
install()
