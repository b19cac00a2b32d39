"""The data sets inside mmengine's wrappers: RepeatDataset and ConcatDataset."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import ConcatDataset, RepeatDataset


def inner_datasets(dataset: Any) -> list[Any]:
    """The data sets inside `dataset`, in order; a repeated one is listed as often as it is repeated."""
    if isinstance(dataset, RepeatDataset):
        return inner_datasets(dataset.dataset) * dataset.times
    if isinstance(dataset, ConcatDataset):
        return [inner for one in dataset.datasets for inner in inner_datasets(one)]
    return [dataset]


def image_sizes(dataset: Any) -> np.ndarray:
    """Height and width of each image, [N, 2].

    Raises:
        ValueError: a data set that does not give them.
    """
    inner = inner_datasets(dataset)
    for one in inner:
        if not hasattr(one, "sizes"):
            raise ValueError(
                "train_dataloader.dataset: expected an InstanceDataset or ImageFolderDataset, alone or in a "
                f"RepeatDataset or ConcatDataset, got {type(one).__name__}"
            )
    sizes = {one: np.asarray(one.sizes()).reshape(-1, 2) for one in dict.fromkeys(inner)}
    return np.concatenate([sizes[one] for one in inner])
