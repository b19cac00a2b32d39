"""Chooses how to make pseudo labels: the candidate whose masks fit the user's own labels best."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sp_fast.data.coco import load_coco
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.scheduler import worker_environment
from sp_fast.experiments.settings import Choice
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.scores import score_proposals

SAMPLED = 12  # labelled images that the candidates are tried on
SECONDS = 1200.0  # of a candidate, for all images
COSINE = {"similarity": "cosine", "center": True}
_GRIDS = [[20, 20], [10, 10]]
# Arguments of `build_backbone` beside those of the weights; size of the images; options of the proposer.
CANDIDATES: dict[str, dict[str, Any]] = {
    "the paper's": {"backbone": {}, "size": 640, "options": {}},
    "the paper's, replicated border": {"backbone": {"padding": "replicate"}, "size": 640, "options": {}},
    "cosine, high threshold": {
        "backbone": {"padding": "replicate"},
        "size": 640,
        "options": {**COSINE, "threshold": 0.85},
    },
    "finer grid, larger images": {"backbone": {}, "size": 1280, "options": {"grid": _GRIDS}},
    "finer grid, larger images, cosine": {
        "backbone": {},
        "size": 1280,
        "options": {**COSINE, "grid": _GRIDS, "threshold": 0.7},
    },
    "features at stride 16": {
        "backbone": {"stage": 3, "padding": "replicate"},
        "size": 640,
        "options": {**COSINE, "grid": _GRIDS, "threshold": 0.7},
    },
    "multiscale": {"backbone": {}, "size": None, "options": {"preset": "multiscale"}},
    "multiscale, untrained features at stride 4": {
        "backbone": {"name": "random", "weights": None, "padding": "replicate"},
        "size": None,
        "options": {"preset": "multiscale", "sizes": [480]},
    },
}


def choose_proposals(
    data: FitData,
    backbone: Mapping[str, Any],
    masks: int,
    progress: Callable[[int, int], None],
    seconds: float = SECONDS,
) -> tuple[Choice, float]:
    """Tries all candidates on some labelled images.

    Args:
        data: the data.
        backbone: arguments of `build_backbone`, which a candidate may change.
        masks: largest number of masks per image.
        progress: called with the numbers of candidates done and in total.
        seconds: time that the chosen one may take for all images; twice that of the fastest is allowed too.

    Returns:
        The choice, and the seconds that it will take for all images. The choice's value is the candidate with
        the highest mean best IoU, with its name, `masks` in its options and the `channels` of its features.
    """
    found = {
        name: {**one, "options": {**one["options"], "max_masks": masks}} for name, one in CANDIDATES.items()
    }
    scores, takes, channels = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        sample = Path(temporary) / "images"
        count = _link_sample(data, sample)
        for number, (name, one) in enumerate(found.items()):
            progress(number, len(found))
            out, start = sample.with_name(f"{number}.json"), time.monotonic()
            with _threads_of_a_run():
                channels[name] = _propose(sample, out, backbone, one)
            takes[name] = (time.monotonic() - start) / count * data.images_count
            scores[name] = score_proposals(out, data.truth).by_size["all"]
        progress(len(found), len(found))
    most = max(seconds, 2 * min(takes.values()))
    allowed = [name for name in found if takes[name] <= most]
    best = max(allowed, key=lambda name: scores[name].mean_best_iou)
    others = ", ".join(
        f"{score.mean_best_iou:.2f} ({name}{'' if name in allowed else '; too slow'})"
        for name, score in scores.items()
        if name != best
    )
    iou, above = scores[best].mean_best_iou, scores[best].above_half
    why = f"mean best IoU {iou:.2f} with your labels, {above:.0%} above 0.5; others {others}"
    value = {"name": best, **found[best], "channels": channels[best]}
    return Choice("proposals", value, why), takes[best]


@contextlib.contextmanager
def _threads_of_a_run() -> Iterator[None]:
    """Uses as many threads as a run will, so that the time measured is that of a run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(int(worker_environment()["OMP_NUM_THREADS"].split(",")[0]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _link_sample(data: FitData, folder: Path) -> int:
    """Links up to SAMPLED labelled images with objects into a folder; returns their number."""
    coco = load_coco(data.truth)
    ids = {one["image_id"] for one in coco["annotations"]}
    names = [one["file_name"] for one in coco["images"] if one["id"] in ids]
    sampled = names[:: math.ceil(len(names) / SAMPLED)]
    for name in sampled:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((Path(data.images) / name).resolve())
    return len(sampled)


def _propose(images: Path, out: Path, backbone: Mapping[str, Any], one: Mapping[str, Any]) -> int:
    """Makes the masks of a candidate; returns the channels of its features."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_backbone(**{**backbone, **one["backbone"]})
    proposer = SaliencyProposer(network, **one["options"])
    propose_folder(images, out, proposer, size=one["size"], device=device)
    return network.channels
