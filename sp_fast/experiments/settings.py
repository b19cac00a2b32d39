"""Settings of `sp-fast fit`, chosen from the data and the device; each choice has a reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sp_fast.data.coco import load_coco
from sp_fast.experiments.fit_data import FitData
from sp_fast.proposals.backbones import backbone_of

# Models for a CPU and for a GPU, by the backbone that the weights are of.
MODELS = {
    "mobilenet_v2": ("knet_mobilenet_v2_64", "knet_mobilenet_v2"),
    "resnet50": ("knet_r50", "knet_r50"),
}
FROZEN = ("knet_mobilenet_v2_64",)  # models whose backbone is frozen
OBJECT_SIDE = 24  # side in pixels that the median object should have: three cells of the masks, at stride 8
MANY_OBJECTS = 20  # per image, above which a CPU takes smaller batches and more steps
CPU_SIDE, GPU_SIDES = 384, (1333, 800)
GIVEN = "given"


class Choice(NamedTuple):
    """A setting."""

    name: str
    value: Any  # plain JSON value
    reason: str


class Labels(NamedTuple):
    """Measures of the labels that settings depend on."""

    longer_side: int  # median over images, in pixels
    object_side: float  # median over objects of the root of the area, in pixels
    most_objects: int  # 95th percentile over images
    mean_objects: float  # over images


def measure(data: FitData) -> Labels:
    """Measures the labels to fine-tune on."""
    coco = load_coco(data.labels)
    objects = [one for one in coco["annotations"] if not one["iscrowd"]]
    counts = Counter(one["image_id"] for one in objects)
    per_image = [counts[one["id"]] for one in coco["images"]]
    return Labels(
        round(np.median([max(one["height"], one["width"]) for one in coco["images"]])),
        float(np.median([one["area"] ** 0.5 for one in objects])) if objects else OBJECT_SIDE,
        math.ceil(np.percentile(per_image, 95)),
        float(np.mean(per_image)),
    )


def choose(data: FitData, weights: str, given: Mapping[str, Any], *, gpu: bool) -> list[Choice]:
    """Chooses all settings but the proposals'; see `sp_fast.experiments.candidates` for those.

    Args:
        data: the data.
        weights: checkpoint of the backbone.
        given: settings that the user gave, by name.
        gpu: whether training runs on a GPU.

    Raises:
        ValueError: weights of a backbone that no model has, or a model with another backbone.
    """
    labels, choices = measure(data), list[Choice]()

    def add(name: str, value: Any, reason: str) -> Any:
        choices.append(Choice(name, given[name], GIVEN) if name in given else Choice(name, value, reason))
        return choices[-1].value

    device = "a GPU" if gpu else "a CPU"
    backbone = backbone_of(weights)
    add("model", _model(backbone, given.get("model"), gpu), f"weights of {backbone}, {device}")
    side, why = _side(labels, gpu)
    add("size", side, why)
    many = max(40, 20 * math.ceil(1.3 * labels.most_objects / 20))
    why = f"95 % of the labelled images have up to {labels.most_objects} objects"
    kernels = add("kernels", min(many, 300), why)
    why = "most pseudo labels per image: half as many as kernels, so that the other kernels learn background"
    add("masks", max(1, kernels // 2), why)
    wanted = 8 if gpu else 2 if labels.mean_objects > MANY_OBJECTS else 4
    why = f"{device}, {labels.mean_objects:.0f} objects per labelled image"
    batch = add("batch_size", min(wanted, data.labels_count), why)
    passes, low, high = (100, 8000, 160_000) if gpu else (70, 1200, 2400)
    steps = min(max(passes * data.labels_count, low), high) // batch
    why = f"{passes} passes over {data.labels_count} images, {low} to {high} images on {device}"
    add("finetune_steps", steps, why)
    passes, low, high = (12, 16_000, 240_000) if gpu else (6, 800, 1200)
    steps = min(max(passes * data.images_count, low), high) // batch
    why = f"{passes} passes over {data.images_count} images, {low} to {high} images on {device}"
    add("pretrain_steps", steps, why)
    add("amp", gpu, "bfloat16 saves time and memory on a GPU" if gpu else "bfloat16 gains little on a CPU")
    why = "of the steps; the learning rate then falls along a cosine"
    choices.append(Choice("warmup", 0.05, why))
    why = "the most similar prompt for each kernel; their mean stays in the kernels after pre-training"
    add("prompts", "cosine", why)
    return with_caches(choices, data)


def with_caches(choices: list[Choice], data: FitData) -> list[Choice]:
    """The choices with those of the caches, which follow from the numbers of steps."""
    found, most = {one.name: one for one in choices}, measure(data).most_objects
    frozen, side = found["model"].value in FROZEN, _longest(found["size"].value)
    for stage, count in (("pretrain", data.images_count), ("finetune", data.labels_count)):
        seen = found[f"{stage}_steps"].value * found["batch_size"].value
        found[f"{stage}_cache"] = Choice(f"{stage}_cache", *_cache(count, seen, side, most, frozen))
    return list(found.values())


def shown(choice: Choice) -> str:
    """The value as text; of the proposals their name, since all of it is in settings.json."""
    if choice.name == "proposals":
        # Folders of earlier versions have the name in the reason.
        return choice.value.get("name") or choice.reason.partition(":")[0]
    return choice.value if isinstance(choice.value, str) else json.dumps(choice.value)


def _model(backbone: str, given: str | None, gpu: bool) -> str:
    known = [name for names in MODELS.values() for name in names]
    if given is not None and given not in known:
        raise ValueError(f"--model: expected one of {', '.join(dict.fromkeys(known))}, got {given!r}")
    fitting = MODELS.get(backbone)
    if fitting is None:
        raise ValueError(
            f"--weights: expected weights of {' or '.join(MODELS)}, which have a model, "
            f"got those of {backbone}"
        )
    if given is not None and given not in fitting:
        needed = next(name for name, models in MODELS.items() if given in models)
        raise ValueError(f"--weights: the model {given} needs weights of {needed}, got those of {backbone}")
    return fitting[gpu]


def _side(labels: Labels, gpu: bool) -> tuple[Any, str]:
    """Size of the images; enlarged where objects are small, since the masks have one cell per 8 pixels."""
    factor = min(max(OBJECT_SIDE / labels.object_side, 1.0), 2.0)
    wanted = max(32 * math.ceil(labels.longer_side * factor / 32), 64)
    text = f"the median image has {labels.longer_side} pixels"
    if factor > 1:
        text += f", enlarged since the median object has {labels.object_side:.0f}"
    if gpu:
        if wanted > GPU_SIDES[0]:
            return list(GPU_SIDES), f"{text}; at most 1333 x 800"
        return wanted, text
    if wanted > CPU_SIDE:
        return CPU_SIDE, f"{text}; at most {CPU_SIDE} on a CPU, for time"
    return wanted, text


def _longest(size: Any) -> int:
    return size if isinstance(size, int) else max(size)


def _cache(count: int, seen: int, side: int, objects: int, frozen: bool) -> tuple[str | None, str]:
    """What is kept in memory: images, a frozen backbone's maps too, or nothing."""
    import torch

    from sp_fast.mmdet_plugin.cache import MEMORY_SHARE, free_memory

    free = free_memory(torch.device("cpu")) * MEMORY_SHARE / 2  # two runs at once
    images = count * side * side * (3 + objects / 8)
    # MobileNetV2's four maps in 32 bits, of the image and its mirror image.
    maps = count * side * side * 8 * (24 / 16 + 32 / 64 + 96 / 256 + 320 / 1024)
    if images > free:
        return None, f"{count} images do not fit in memory"
    if frozen and seen > 4 * count and images + maps < free:
        return (
            "features",
            f"the backbone is frozen, and each of {count} images is seen {seen / count:.0f} times",
        )
    return "ram", f"{count} images fit in memory"
