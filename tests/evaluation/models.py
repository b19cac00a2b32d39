"""A model that predicts the annotations."""

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.images import read_image
from sp_fast.data.rle import to_rle
from sp_fast.inference import Instances


class Oracle:
    """Predicts the annotated masks in the images of `truth`, of the folder `images`.

    `rename` changes the names of their classes.
    """

    batch_size = 4

    def __init__(self, truth, images, rename=lambda name: name):
        self.truth = truth
        self.known = {read_image(images / one["file_name"]).tobytes(): one for one in truth["images"]}
        self.names = {one["id"]: rename(one["name"]) for one in truth["categories"]}
        # In another order than in the file, since classes are matched by name.
        self.classes = tuple(sorted(set(self.names.values()), reverse=True))

    def predict(self, images, *, threshold, top_k):
        """Instances of each image, given as an array."""
        assert threshold == 0
        assert len(images) <= self.batch_size
        return [self._of(self.known[image.tobytes()])[:top_k] for image in images]

    def _of(self, info):
        objects = [one for one in self.truth["annotations"] if one["image_id"] == info["id"]]
        size = info["height"], info["width"]
        masks = [coco_mask.decode(to_rle(one["segmentation"], *size)).astype(bool) for one in objects]
        boxes = [coco_mask.toBbox(to_rle(one["segmentation"], *size)) for one in objects]
        sides = np.array(boxes, np.float32).reshape(-1, 4)
        sides[:, 2:] += sides[:, :2]
        labels = [self.classes.index(self.names[one["category_id"]]) for one in objects]
        return _Instances(
            masks=np.array(masks, bool).reshape(-1, *size),
            boxes=sides,
            scores=np.full(len(objects), 0.5, np.float32),
            labels=np.array(labels, np.int64),
            classes=self.classes,
        )


class _Instances(Instances):
    def __getitem__(self, rows):
        parts = {name: getattr(self, name)[rows] for name in ("masks", "boxes", "scores", "labels")}
        return _Instances(classes=self.classes, **parts)
