"""Frozen backbones that compute the features for saliency masks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sp_fast.ops.checks import check_choice
from sp_fast.proposals.extents import MaskedPadding, pad_batch, sizes_tensor
from sp_fast.proposals.folded import FoldedNetwork
from sp_fast.proposals.frozen import Backbone, Features, checked
from sp_fast.proposals.networks import NETWORKS, RESNETS, layers, parameter_shapes
from sp_fast.proposals.timm_backbone import timm_backbone
from sp_fast.weights import closest_network, load_backbone_weights

BACKBONES = (*NETWORKS, "random")
STYLES = ("pytorch", "caffe")
STAGES = (1, 2, 3, 4)
PADDINGS = ("zeros", "replicate")

_TIMM = "timm:"


class ConvBackbone(Backbone):
    """One of torchvision's networks, or any body of convolutions and pooling with strides 4, 8, 16 and 32."""

    def __init__(
        self,
        body: nn.Module,
        name: str,
        style: str = "pytorch",
        stage: int = 4,
        padding: str = "zeros",
        folded: bool = True,
    ) -> None:
        super().__init__(
            body,
            name,
            stride=2 ** (stage + 1),
            channels=[layer for layer in body.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels,
            complete_keys=frozenset(parameter_shapes(name) if name in NETWORKS else body.state_dict()),
            style=style,
            stage=stage,
            padding=padding,
        )
        self._masking = MaskedPadding(self, padding)
        self._folded = FoldedNetwork(body) if folded and name in NETWORKS and padding == "zeros" else None
        if style == "caffe":
            self.std = (1.0, 1.0, 1.0)

    def normalize(self, images: Tensor) -> Tensor:
        """See `Backbone.normalize`; the channels of the Caffe style are BGR."""
        x = super().normalize(images)
        return x.flip(-3) if self.style == "caffe" else x

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> Features:
        """See `Backbone.features`.

        All images go through the network at once, padded to one size; on a CPU one by one, through the
        folded network where there is one, since larger batches cost more memory than they gain.
        """
        if self._folded is not None and self._folded.usable():
            found = [self._folded(self.normalize(image)[None])[0] for image in images]
            maps, own = pad_batch(found)
            return Features(maps, sizes_tensor(own, maps.device), own)
        batch, sizes = pad_batch([self.normalize(image) for image in images])
        self._masking.begin(sizes, (batch.shape[-2], batch.shape[-1]))
        try:
            maps = self(batch)
            own = self._masking.sizes_of(maps)
        finally:
            self._masking.end()
        return Features(maps, sizes_tensor(own, maps.device), own)


class RandomBackbone(ConvBackbone):
    """Two random 5 x 5 convolutions of 64 orthogonal filters, each with a ReLU, then 4 x 4 average pooling.

    It needs no downloaded weights and is good enough for saliency masks of simple textured scenes. The
    channels of the image, and of the features before pooling, have zero mean and unit variance per image.
    """

    def __init__(self, padding: str = "zeros") -> None:
        body = nn.Sequential()
        for inputs in (3, 64):
            layer = nn.Conv2d(inputs, 64, kernel_size=5, padding=2, bias=False)
            nn.init.orthogonal_(layer.weight)
            body.extend([layer, nn.ReLU(inplace=True)])
        body.append(nn.AvgPool2d(4))
        super().__init__(body, "random", stage=1, padding=padding)
        self.body[3].register_forward_hook(self._standardize)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images [..., 3, H, W] to zero mean and unit variance per image and channel."""
        x = checked(images)
        deviation, mean = torch.std_mean(x, dim=(-2, -1), keepdim=True, correction=0)
        return (x - mean) / deviation.clamp(min=1e-3)

    def _standardize(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._masking.standardize(output)


def backbone_of(path: str | os.PathLike[str]) -> str:
    """Find the name of the backbone in a checkpoint from its parameters.

    Raises:
        WeightsError: not a checkpoint, or not of a known backbone.
        FileNotFoundError: no such file.
    """
    return closest_network(path, {name: parameter_shapes(name) for name in NETWORKS})


def build_backbone(
    name: str,
    *,
    style: str = "pytorch",
    stage: int = 4,
    padding: str = "zeros",
    weights: str | os.PathLike[str] | None = None,
    allow_partial: bool = False,
    seed: int = 0,
    folded: bool = True,
) -> Backbone:
    """Build a frozen backbone in eval mode.

    Args:
        name: one of BACKBONES, or `timm:NAME` for a model of timm, see `timm_backbone`. `random` has one
            stage and takes no weights.
        style: "pytorch", or "caffe" (ResNets only).
        stage: stage whose output is used, 1 to 4 (strides 4, 8, 16 and 32); 4 for a ViT: its last block.
        padding: what convolutions see beyond the border of the image, "zeros" or "replicate" (the values at
            the border). Zeros, as in training, often make cells along the border alike, which gives a mask.
        weights: checkpoint in any layout that `load_backbone_weights` reads; None: random weights, with a
            warning, since masks of their features mean little (those of `random` are made for it).
        allow_partial: accept a checkpoint with missing parameters, which stay random.
        seed: random seed of the initial weights; the global random state is not changed.
        folded: let a CPU run torchvision's networks with zero padding as a copy of folded layers, several
            times as fast, which rounds differently. False: layer by layer, as on a GPU.

    Raises:
        ValueError: unknown name, style, stage or padding, or a checkpoint that does not fit.
    """
    if not name.startswith(_TIMM):
        check_choice("backbone", name, (*BACKBONES, "timm:NAME"))
    check_choice("style", style, STYLES)
    check_choice("padding", padding, PADDINGS)
    if stage not in STAGES:
        raise ValueError(f"stage: expected 1, 2, 3 or 4, got {stage!r}")
    if style == "caffe" and name not in RESNETS:
        raise ValueError(f"style: caffe is for {', '.join(RESNETS)} only, not for {name}")
    if name == "random" and weights is not None:
        raise ValueError("weights: the random backbone takes none; leave them out or choose another backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(_TIMM):
            backbone: Backbone = timm_backbone(name.removeprefix(_TIMM), stage, padding)
        elif name == "random":
            backbone = RandomBackbone(padding)
        else:
            backbone = ConvBackbone(layers(name, style, stage), name, style, stage, padding, folded)
    if weights is not None:
        load_backbone_weights(backbone, weights, allow_partial=allow_partial)
    elif name != "random":
        warnings.warn(
            f"weights: got none, so {name} has random weights, whose masks mean little; pass a checkpoint",
            stacklevel=2,
        )
    return backbone
