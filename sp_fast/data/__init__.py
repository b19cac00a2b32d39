"""Images, annotations and data sets. Importing this package needs neither mmdet nor mmengine."""

from .images import IMAGE_SUFFIXES, BrokenImageError, BrokenImages, list_images, read_image

__all__ = ["IMAGE_SUFFIXES", "BrokenImageError", "BrokenImages", "list_images", "read_image"]
