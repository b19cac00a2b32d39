"""What the pre-trainer asks of a model family."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Decorate = Callable[[Tensor], Tensor]

_ADAPTERS: dict[str, type[Adapter]] = {}


class Adapter(ABC):
    """Runs one family's forward and losses with prompts injected.

    Attributes:
        class_heads: patterns of the parameter names whose shape depends on the number of classes; they are
            left out of the exported weights.
        injection_points: where prompts can be added, the names the option `inject` takes.
    """

    class_heads: tuple[str, ...]
    injection_points: tuple[str, ...]

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
        """C, channels of the kernels."""

    @abstractmethod
    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The backbone's maps and the feature pyramid's maps of `[B, 3, H, W]` images."""

    @abstractmethod
    def targets(self, data_samples: list, image_size: tuple[int, int]) -> Any:
        """The data samples' instances, padded to the largest count of the batch."""

    @abstractmethod
    def targets_from_masks(self, masks: Tensor, count: Tensor) -> Any:
        """The same from class-agnostic masks `[B, L, h, w]` in [0, 1] at the size of the targets."""

    @abstractmethod
    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Any, decorate: Decorate, inject: str
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The base model's losses with decorated kernels.

        Returns:
            The losses by name; the kernels `[S, B, N, C]` after each update stage; int64 `[S, B, N]`, the
            target matched with each kernel, -1 for none.
        """

    def transferable(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The detector's weights less its class heads."""
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
