"""The interface between the pre-trainer and a model family."""

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
# mmdet's names of the layers whose shapes depend on the number of classes.
_MMDET_CLASS_HEADS = (
    r"(?!.*rpn_head).*\.(fc_cls|fc_reg|conv_logits|conv_cls|retina_cls|cls_branches|cls_embed|class_embed)\.",
)


class StageResults(NamedTuple):
    """Result of a family's forward pass and losses.

    Attributes:
        losses: losses of the base model, by name.
        kernels: `[S, B, N, C]`, the kernels (or queries) after each update stage.
        assigned: int64 `[S, B, N]`, index of the proposal that bipartite matching assigned to each kernel at
            each stage, -1 for none.
    """

    losses: dict[str, Tensor]
    kernels: Tensor
    assigned: Tensor


class Adapter(ABC):
    """Runs the forward pass and losses of one family with prompts added to its kernels.

    A subclass names the detector class it serves: `class MyAdapter(Adapter, detector="MyDetector")`.

    Attributes:
        class_heads: patterns of parameter names whose shapes depend on the number of classes; these are left
            out of the exported weights.
        injection_points: places where prompts can be added, as named by the option `inject`: `init`, the
            learned initial kernels; `proposal`, the kernels after the first head or stage.
        initial_kernels: name of the parameter K^0 `[N, C, ...]` of the detector, which the option `fold` adds
            the mean prompt to; empty if a family has none.
    """

    class_heads: tuple[str, ...]
    initial_kernels: str = ""
    injection_points: tuple[str, ...] = ("init", "proposal")

    def __init__(self, detector: nn.Module) -> None:
        self.detector: Any = detector

    def __init_subclass__(cls, detector: str = "", **kwargs: Any) -> None:
        """Registers the adapter for the detector class with this name."""
        super().__init_subclass__(**kwargs)
        if detector:
            _ADAPTERS[detector] = cls

    @property
    @abstractmethod
    def kernel_channels(self) -> int:
        """C, channels of the kernels and of the feature pyramid that `features` returns."""

    @abstractmethod
    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Maps of the backbone and of the feature pyramid, finest first, for images `[B, 3, H, W]`."""

    @abstractmethod
    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Any, decorate: Decorate, inject: str
    ) -> StageResults:
        """Computes the base model's losses with decorated kernels.

        Args:
            pyramid: feature pyramid from `features`.
            targets: result of `targets` or `targets_from_masks`.
            decorate: function that adds prompts to kernels `[N, C]` (shared) or `[B, N, C]` and returns
                `[B, N, C]`.
            inject: one of `injection_points`.
        """

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Any:
        """Turns the instances of the data samples into targets for `loss`; a family may override the type."""
        device = next(self.detector.parameters()).device
        return targets_from_samples(data_samples, image_size, 1, device)

    def target_masks(self, targets: Any, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Tensor:
        """Returns the masks of targets that the method `targets` made from the same data samples.

        Returns:
            fp32 `[B, L, H/4, W/4]` in [0, 1], where L is the largest count.
        """
        return padded_masks(data_samples, image_size, next(self.detector.parameters()).device)

    def targets_from_masks(
        self, masks: Tensor, boxes: Tensor, count: Tensor, data_samples: Sequence[Any]
    ) -> Any:
        """Makes targets for `loss` from masks that were computed in the training step.

        Args:
            masks: masks `[B, L, H/4, W/4]` in [0, 1].
            boxes: tight xyxy boxes `[B, L, 4]` in pixels of the padded input.
            count: int64 `[B]`, number of masks of each image; later rows are padding.
            data_samples: B data samples without instances, for their meta information.
        """
        return Targets(masks, torch.zeros_like(masks[..., 0, 0], dtype=torch.int64), count)

    def transferable(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights of the detector without its class heads, as the plain checkpoint has them."""
        heads = [re.compile(pattern) for pattern in self.class_heads]
        return {
            name: value for name, value in state_dict.items() if not any(head.match(name) for head in heads)
        }


def adapter_class(detector: type) -> type[Adapter] | None:
    """The adapter of a detector class or of its nearest base class that has one."""
    return next((_ADAPTERS[cls.__name__] for cls in detector.__mro__ if cls.__name__ in _ADAPTERS), None)


def adapter_for(detector: nn.Module) -> Adapter:
    """Makes the adapter for a detector; raises ValueError with the known families if there is none."""
    found = adapter_class(type(detector))
    if found is None:
        known = ", ".join(sorted(_ADAPTERS))
        raise ValueError(f"detector: expected one of {known}, got {type(detector).__name__}")
    return found(detector)


def class_heads(detector: nn.Module) -> tuple[str, ...]:
    """Patterns of the names of parameters that depend on the number of classes, for any detector of mmdet."""
    found = adapter_class(type(detector))
    return found.class_heads if found else _MMDET_CLASS_HEADS
