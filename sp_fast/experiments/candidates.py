"""Chooses how to make pseudo labels: the candidate whose masks fit the user's own labels best."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sp_fast.data.coco import load_coco
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.settings import Choice
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.scores import score_proposals

SAMPLED = 12  # labelled images that the candidates are tried on
COSINE = {"similarity": "cosine", "center": True}
CANDIDATES: dict[str, dict[str, Any]] = {
    "the paper's": {"stage": 4, "size": 640, "options": {}},
    "cosine, high threshold": {"stage": 4, "size": 640, "options": {**COSINE, "threshold": 0.85}},
    "finer grid, larger images": {
        "stage": 4,
        "size": 1280,
        "options": {"grid": [[20, 20], [10, 10]]},
    },
    "the same, cosine": {
        "stage": 4,
        "size": 1280,
        "options": {**COSINE, "grid": [[20, 20], [10, 10]], "threshold": 0.7},
    },
    "features at stride 16": {
        "stage": 3,
        "size": 640,
        "options": {**COSINE, "grid": [[20, 20], [10, 10]], "threshold": 0.7},
    },
}


def choose_proposals(
    data: FitData, backbone: Mapping[str, Any], masks: int, progress: Callable[[int, int], None]
) -> Choice:
    """Tries all candidates on some labelled images.

    Args:
        data: the data.
        backbone: arguments of `build_backbone`, without `stage`.
        masks: most masks per image.
        progress: called with the numbers of candidates done and in total.

    Returns:
        The choice; its value is the candidate with the highest mean best IoU, with `masks` in its options.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [one["file_name"] for one in load_coco(data.truth)["images"]]
    found, scores = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names[:: -(-len(names) // SAMPLED)]:
            link = folder / "images" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((Path(data.images) / name).resolve())
        for number, (name, one) in enumerate(CANDIDATES.items()):
            progress(number, len(CANDIDATES))
            found[name] = {**one, "options": {**one["options"], "max_masks": masks}}
            proposer = SaliencyProposer(
                build_backbone(stage=one["stage"], **backbone), **found[name]["options"]
            )
            out = folder / f"{number}.json"
            propose_folder(folder / "images", out, proposer, size=one["size"], device=device)
            cover = score_proposals(out, data.truth).by_size["all"]
            scores.append((name, cover.mean_best_iou, cover.above_half))
        progress(len(CANDIDATES), len(CANDIDATES))
    name, iou, above = max(scores, key=lambda score: score[1])
    others = ", ".join(f"{iou:.2f} ({other})" for other, iou, _ in scores if other != name)
    why = f"{name}: mean best IoU {iou:.2f} with your labels, {above:.0%} above 0.5; others {others}"
    return Choice("proposals", found[name], why)
