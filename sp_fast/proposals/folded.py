"""A frozen network as a CPU runs it fastest: batch norm folded, layers joined, in oneDNN's own layout."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What oneDNN calls an activation, with its arguments.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class FoldedNetwork:
    """Runs a network of convolutions, batch norm, ReLU and pooling; equal to it but for rounding.

    Folded on first use, and again after the parameters have changed. Not a module, so that the parameters
    of the network stay the only ones.
    """

    def __init__(self, body: nn.Module) -> None:
        self._body = body
        self._state: list[tuple[int, int]] = []
        self._folded: nn.Module | None = None

    def usable(self) -> bool:
        """Whether this machine and the network's device and dtype allow it."""
        return (
            platform.machine() in ("x86_64", "AMD64")
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
            and all(value.is_cpu and value.dtype == torch.float32 for value in self._body.parameters())
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images fp32 [B, 3, H, W] -> features [B, D, h, w]."""
        # Tensors made in inference mode have no version.
        state = [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in self._tensors()]
        if self._folded is None or state != self._state:
            self._folded, self._state = folded(self._body), state
        return self._folded(images.to_mkldnn()).to_dense()

    def _tensors(self) -> list[Tensor]:
        return [*self._body.parameters(), *self._body.buffers()]

    def __getstate__(self) -> dict[str, Any]:
        return {"_body": self._body, "_state": [], "_folded": None}


def folded(body: nn.Module) -> fx.GraphModule:
    """Copy a network with each convolution, its batch norm and its activation as one layer.

    The copy takes and gives tensors in oneDNN's layout.
    """
    traced = fx.symbolic_trace(body)
    layers = dict(traced.named_modules())
    for number, node in enumerate(list(traced.graph.nodes)):
        conv = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        norm = _following(node, layers, nn.BatchNorm2d)
        activation = _following(norm or node, layers, *_ACTIVATIONS)
        if norm is not None:
            conv = fuse_conv_bn_eval(conv, layers[str(norm.target)])
        name, arguments = (
            ("none", []) if activation is None else _ACTIVATIONS[type(layers[str(activation.target)])]
        )
        traced.add_submodule(f"folded{number}", _Convolution(conv, name, arguments))
        node.target = f"folded{number}"
        for other in (activation, norm):
            if other is not None:
                other.replace_all_uses_with(node)
                traced.graph.erase_node(other)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _following(node: fx.Node, layers: dict[str, nn.Module], *kinds: type[nn.Module]) -> fx.Node | None:
    """The layer of one of `kinds` that alone uses a node's result, if there is one."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_module" and isinstance(layers[str(users[0].target)], kinds):
        return users[0]
    return None


class _Convolution(nn.Module):
    """A convolution with its activation, by the op that torch.compile uses too."""

    def __init__(self, conv: nn.Conv2d, activation: str, arguments: list[float]) -> None:
        super().__init__()
        self.weight = conv.weight.detach().contiguous()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.options = (conv.padding, conv.stride, conv.dilation, conv.groups, activation, arguments, "")

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.options)
