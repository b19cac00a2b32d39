"""Backbones from timm (the extra `timm`): ConvNeXt, ViT and other networks that give a map for each stage."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.proposals.extents import Size, pad_batch, sizes_tensor
from sp_fast.proposals.frozen import Backbone, Features
from sp_fast.weights.layouts import Translated
from sp_fast.weights.timm_layouts import State, translate_timm


class TimmBackbone(Backbone):
    """A frozen model of timm.

    Its maps cover the image exactly: images are resized to the nearest multiples of the stride, at least one
    cell. A ViT's positions are interpolated to the size, and its class and register tokens are left out; its
    features are those after the last norm. The mean and standard deviation of `normalize` are those that timm
    states for the model's tag.

    The images of a batch are run together only where their resized sizes agree, since in a padded image,
    attention would look at the padding: a batch of B images takes up to B passes.
    """

    def __init__(
        self,
        body: nn.Module,
        name: str,
        *,
        whole: nn.Module,
        index: int,
        norm: bool,
        mean: Sequence[float],
        std: Sequence[float],
        **shared: Any,
    ) -> None:
        super().__init__(body, name, complete_keys=tuple(whole.state_dict()), **shared)
        self._convert = partial(_converted, whole)
        self._index, self._norm = index, norm
        self.mean, self.std = ([255 * value for value in values] for values in (mean, std))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W], sides divisible by the stride -> features [B, D, h, w]."""
        return feature_map(self.body, images, self._index, self._norm)

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> Features:
        """See `Backbone.features`: one pass for each size of the resized images."""
        groups: dict[Size, list[int]] = {}
        resized = [self._resize(self.normalize(image)) for image in images]
        for number, image in enumerate(resized):
            groups.setdefault((image.shape[-2], image.shape[-1]), []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in groups.values():
            found.update(zip(numbers, self(torch.stack([resized[k] for k in numbers])), strict=True))
        maps, sizes = pad_batch([found[number] for number in range(len(images))])
        return Features(maps, sizes_tensor(sizes, maps.device), sizes)

    def translate(self, tensors: Mapping[str, Tensor]) -> Translated:
        """See `Backbone.translate`; layouts of timm, the original repositories and Hugging Face."""
        return translate_timm(tensors, list(self.complete_keys), self._convert)

    def _resize(self, image: Tensor) -> Tensor:
        size = [max(1, round(side / self.stride)) * self.stride for side in image.shape[-2:]]
        if size == list(image.shape[-2:]):
            return image
        return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def timm_backbone(model: str, stage: int = 4, padding: str = "zeros") -> TimmBackbone:
    """Build a model of timm with random weights, as a frozen backbone.

    Args:
        model: timm's name, such as `vit_small_patch14_dinov2` or `convnext_tiny.dinov3_lvd1689m`. The tag
            after the point says how images are normalised; without it, timm's default is used.
        stage: 1 to 4, for strides 4 to 32; 4 for models whose blocks all have one stride, such as ViTs: the
            last block.
        padding: "zeros" or "replicate", for networks of ordinary convolutions only, such as ConvNeXt.

    Raises:
        ValueError: timm is missing; no such model, tag, stage or padding; a model without maps for images of
            any size.
    """
    body = _create(model)
    config = body.pretrained_cfg
    name = ".".join(part for part in ("timm:" + config["architecture"], config.get("tag")) if part)
    if not hasattr(body, "forward_intermediates"):
        raise ValueError(
            f"backbone: {name} does not give the maps of its stages; choose another model of timm"
        )
    strides = [one["reduction"] for one in body.feature_info]
    single = len(set(strides)) == 1
    index = _stage_index(name, stage, strides, single)
    if padding != "zeros":
        _check_replicates(name, body)
    whole = _without_values(body)
    body.prune_intermediate_layers([index], prune_norm=False, prune_head=True)
    stride = strides[index]
    try:
        with torch.no_grad():
            trial = feature_map(body.eval(), torch.zeros(1, 3, 2 * stride, 3 * stride), index, single)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"backbone: {name} does not take images of any size ({reason})") from error
    if trial.shape[2:] != (2, 3):
        raise ValueError(
            f"backbone: {name} was expected to map 2 x 3 strides of {stride} pixels to 2 x 3 cells, got "
            f"{list(trial.shape)}; choose another model of timm"
        )
    return TimmBackbone(
        body,
        name,
        whole=whole,
        index=index,
        norm=single,
        mean=config["mean"],
        std=config["std"],
        stride=stride,
        channels=trial.shape[1],
        stage=stage,
        padding=padding,
    )


def feature_map(body: nn.Module, images: Tensor, index: int, norm: bool) -> Tensor:
    """Map [B, D, h, w] of a timm model's feature `index`, after the last norm if `norm`."""
    (features,) = body.forward_intermediates(
        images, indices=[index], norm=norm, stop_early=True, intermediates_only=True
    )
    return features


def _create(model: str) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(f"backbone: timm:{model} needs timm: pip install 'sp_fast[timm]'") from None
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them"
        raise ValueError(f"backbone: timm {timm.__version__} has no model {model!r}; {hint}")
    try:
        try:
            return timm.create_model(model, num_classes=0, dynamic_img_size=True)
        except TypeError:  # the model has no such option, since it takes images of any size, or of one
            return timm.create_model(model, num_classes=0)
    except RuntimeError as error:  # an unknown tag
        architecture = model.split(".")[0]
        tags = [name.partition(".")[2] for name in timm.list_models(f"{architecture}.*", pretrained=True)]
        raise ValueError(
            f"backbone: timm:{model} cannot be built ({error}); tags of {architecture}: {', '.join(tags)}"
        ) from error


def _stage_index(name: str, stage: int, strides: Sequence[int], single: bool) -> int:
    """Number of the feature that a stage ends with."""
    if single:
        if stage != 4:
            raise ValueError(
                f"stage: expected 4, the last block of {name}, whose blocks all have stride {strides[-1]}; "
                f"got {stage}"
            )
        return len(strides) - 1
    ends = {stride.bit_length() - 2: index for index, stride in enumerate(strides) if stride >= 4}
    if stage not in ends:
        raise ValueError(f"stage: expected one of {', '.join(map(str, ends))} for {name}, got {stage}")
    return ends[stage]


def _check_replicates(name: str, body: nn.Module) -> None:
    convolutions = [
        layer for layer in body.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    if not all(type(layer).forward is nn.Conv2d.forward for layer in convolutions):
        raise ValueError(
            f"padding: expected zeros, got replicate: {name} has convolutions that do their own padding"
        )
    if not any(any(layer.padding) for layer in convolutions):
        raise ValueError(f"padding: expected zeros, got replicate: no convolution of {name} is padded")


def _without_values(body: nn.Module) -> nn.Module:
    """Copy a model with its parameters on the meta device: timm's conversions need only names and shapes."""
    empty = {id(one): nn.Parameter(one.detach().to("meta")) for one in body.parameters()}
    return copy.deepcopy(body, empty | {id(one): one.to("meta") for one in body.buffers()})


def _converted(whole: nn.Module, state: State) -> State:
    """Convert the keys of the original repository's checkpoint to timm's."""
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints what it leaves out
            return convert(dict(state), whole)
    except Exception:  # of any type, for another network's file; loading then lists the differences
        return state
