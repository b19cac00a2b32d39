"""Images, annotations and data sets. Importing this package needs neither mmdet nor mmengine."""

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.images import (
    IMAGE_SUFFIXES,
    BrokenImageError,
    BrokenImages,
    image_size,
    list_images,
    read_image,
    read_labelled,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "BrokenImageError",
    "BrokenImages",
    "image_size",
    "list_images",
    "load_coco",
    "read_image",
    "read_labelled",
    "save_coco",
]
