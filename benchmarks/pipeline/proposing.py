"""`sp-fast propose` of images of 640 pixels: CPU time per image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from benchmarks.pipeline.clock import milliseconds
from benchmarks.pipeline.image_set import write_set
from benchmarks.pipeline.rows import Row, Task
from sp_fast.data.images import list_images, read_image
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.frozen import Backbone, Features
from sp_fast.proposals.image_masks import encoded_masks
from sp_fast.proposals.run import propose_folder


class Network(NamedTuple):
    """A backbone, the file of its weights, and the goal in ms or in multiples of the network alone."""

    title: str
    options: dict[str, Any]
    weights: str
    goal: float | None = None
    multiple: float | None = None


NETWORKS = {
    "mobilenet_v2": Network("MobileNetV2", {}, "mobilenet_v2_imagenet.pth", goal=60),
    "resnet50": Network(
        "ResNet-50 to layer3",
        {"style": "caffe", "stage": 3},
        "resnet50_caffe_to_layer3.pth",
        multiple=1.15,
    ),
}


def _backbone(name: str, data: Path | None) -> Backbone:
    """The backbone with the data's weights; without data with random ones, which find few masks."""
    network = NETWORKS[name]
    weights = data / "weights" / network.weights if data else None
    return build_backbone(name, **network.options, weights=weights)


def _timed(backbone: Backbone) -> list[float]:
    """CPU time of each image in the network from now on, in ms."""
    times, features = [], backbone.features

    def timed(images: Sequence[torch.Tensor]) -> Features:
        start = time.thread_time()
        found = features(images)
        times.extend([1e3 * (time.thread_time() - start) / len(images)] * len(images))
        return found

    backbone.features = timed  # type: ignore[method-assign]
    return times


def measure(name: str, task: Task) -> list[Row]:
    """CPU of an image with all that is done to it, of its network, and of the rest."""
    cv2.setNumThreads(1)
    network = NETWORKS[name]
    count = task.sizes.proposed
    write_set(task.folder, count, photographs=task.photographs, channels=1, masks=0)
    backbone = _backbone(name, task.data)
    times, of_network = [], _timed(backbone)
    summary = propose_folder(
        task.folder / "images",
        task.folder / "proposals.json",
        SaliencyProposer(backbone),
        workers=1,
        progress=lambda done, total: times.append(1e3 * time.process_time()),
    )
    between = [end - start for start, end in pairwise(times)]
    whole = statistics.median(between[count // 2 :])
    alone = statistics.median(of_network[count // 2 :])
    image = torch.from_numpy(read_image(list_images(task.folder / "images")[0])).permute(2, 0, 1)
    proposer = SaliencyProposer(backbone)
    maps = backbone.features([image]).maps
    saliency = proposer.saliency(maps, proposer.from_features(maps))[0]
    threshold = torch.full((len(saliency),), 0.5)
    encoding = milliseconds(lambda: encoded_masks(saliency, image.shape[-2:], threshold), task.sizes.repeats)
    goal = network.goal if network.multiple is None else network.multiple * alone
    group = f"Proposals with {network.title} at 640 pixels"
    return [
        Row(group, "whole, ms per image", whole, alone, "the network, in the same run", goal=goal),
        Row(group, "network, ms per image", alone),
        Row(group, "resizing and encoding masks, ms", encoding, goal=5),
        Row(group, "masks per image", summary.masks / summary.images),
    ]


PARTS = {f"propose_{name}": partial(measure, name) for name in NETWORKS}
