"""What the pre-trainer asks of a model family."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sp_fast.knet.targets import Targets, padded_masks, targets_from_samples

Decorate = Callable[[Tensor], Tensor]

_ADAPTERS: dict[str, type[Adapter]] = {}


class StageResults(NamedTuple):
    """What a family's forward and losses give.

    Attributes:
        losses: the base model's own, by name.
        kernels: `[S, B, N, C]`, the kernels (or queries) after each update stage.
        assigned: int64 `[S, B, N]`, the target that the stage's bipartite matching gave each kernel, by its
            position among the image's proposals; -1 for none.
    """

    losses: dict[str, Tensor]
    kernels: Tensor
    assigned: Tensor


class Adapter(ABC):
    """Runs one family's forward and losses with prompts injected.

    A subclass names the detector class it serves: `class MyAdapter(Adapter, detector="MyDetector")`.

    Attributes:
        class_heads: patterns of the parameter names whose shape depends on the number of classes; they are
            left out of the exported weights.
        injection_points: where prompts can be added, the names the option `inject` takes: `init`, to what
            the model learns as initial kernels; `proposal`, to what the model's first head makes of them.
    """

    class_heads: tuple[str, ...]
    injection_points: tuple[str, ...] = ("init", "proposal")

    def __init__(self, detector: nn.Module) -> None:
        self.detector: Any = detector

    def __init_subclass__(cls, detector: str = "", **kwargs: Any) -> None:
        """Registers the adapter for the detector class of that name."""
        super().__init_subclass__(**kwargs)
        if detector:
            _ADAPTERS[detector] = cls

    @property
    @abstractmethod
    def kernel_channels(self) -> int:
        """C, channels of the kernels, and of the maps that `features` gives as pyramid."""

    @abstractmethod
    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The backbone's maps and the feature pyramid's, finest first, of `[B, 3, H, W]` images."""

    @abstractmethod
    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Any, decorate: Decorate, inject: str
    ) -> StageResults:
        """The base model's losses with decorated kernels.

        Args:
            pyramid: from :meth:`features`.
            targets: from :meth:`targets` or :meth:`targets_from_masks`.
            decorate: adds prompts to kernels `[N, C]` of the batch or `[B, N, C]`; gives `[B, N, C]`.
            inject: one of `injection_points`.
        """

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Any:
        """The data samples' instances, for :meth:`loss`; :class:`Targets` unless a family needs otherwise."""
        device = next(self.detector.parameters()).device
        return targets_from_samples(data_samples, image_size, 1, device)

    def target_masks(self, targets: Any, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Tensor:
        """The masks of `targets`, as :meth:`targets` makes them of the same data samples.

        Returns:
            fp32 `[B, L, H/4, W/4]` in [0, 1], L being the largest count.
        """
        return padded_masks(data_samples, image_size, next(self.detector.parameters()).device)

    def targets_from_masks(
        self, masks: Tensor, boxes: Tensor, count: Tensor, data_samples: Sequence[Any]
    ) -> Any:
        """The same from masks that were made within the step.

        Args:
            masks: `[B, L, H/4, W/4]` in [0, 1].
            boxes: `[B, L, 4]`, tight x0 y0 x1 y1 in pixels of the padded input.
            count: int64 `[B]`; rows from there on are padding.
            data_samples: B, without instances; for their meta information.
        """
        return Targets(masks, torch.zeros_like(masks[..., 0, 0], dtype=torch.int64), count)

    def transferable(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The detector's weights less its class heads: the keys of the plain checkpoint."""
        heads = [re.compile(pattern) for pattern in self.class_heads]
        return {
            name: value for name, value in state_dict.items() if not any(head.match(name) for head in heads)
        }


def adapter_for(detector: nn.Module) -> Adapter:
    """The adapter of a detector's family; ValueError naming the known families for any other."""
    for cls in type(detector).__mro__:
        if cls.__name__ in _ADAPTERS:
            return _ADAPTERS[cls.__name__](detector)
    known = ", ".join(sorted(_ADAPTERS))
    raise ValueError(f"detector: expected one of {known}, got {type(detector).__name__}")
