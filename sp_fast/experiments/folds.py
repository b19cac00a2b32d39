"""`pretrained.pth` of one pre-training with prompts, folded in another way: rows then share the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDS = ("none", "mean")


def with_fold(folder: Path, trained: Path, *, fold: str) -> dict[str, Any]:
    """Writes the `pretrained.pth` that a pre-training with `prompts.fold=kernel` would have with `fold`.

    Folding changes nothing but K^0 of what is exported, which here becomes K^0 again, or K^0 plus the mean
    over kernels of the prompts that were added to it.

    Args:
        folder: where to write it.
        trained: folder of the pre-training.
        fold: one of FOLDS.

    Raises:
        ValueError: another fold, or a pre-training without one.
    """
    import torch

    from sp_fast.files import write_tensors
    from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME
    from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file

    if fold not in FOLDS:
        raise ValueError(f"fold: expected one of {', '.join(FOLDS)}, got {fold!r}")
    content = load_checkpoint_file(trained / EXPORTED_NAME)
    exported, own = content["state_dict"], load_checkpoint_file(trained / "latest.pth")["state_dict"]
    changed = [name for name in exported if not torch.equal(exported[name], own[f"detector.{name}"])]
    if len(changed) != 1:
        raise ValueError(f"{trained}: expected a pre-training with prompts and prompts.fold=kernel, got none")
    kernels = own[f"detector.{changed[0]}"]
    received = (exported[changed[0]] - kernels).mean(0, keepdim=True)
    exported[changed[0]] = kernels + received if fold == "mean" else kernels
    write_tensors(content, folder / EXPORTED_NAME)
    return {}
