"""Inputs and comparisons of the kernel tests."""

import torch
from torch import Tensor

# Tolerance: rounding of the result, and of sums in another order.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(TOLERANCE)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Normally distributed values, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def integers(low: int, high: int, shape: tuple[int, ...], seed: int, device: str = "cpu") -> Tensor:
    """Integers in [low, high), the same on every device."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def scattered(x: Tensor) -> Tensor:
    """Copy x to memory that is not contiguous along any dimension."""
    wide = x.new_zeros(*reversed(x.shape), 2)
    view = wide[..., 1].permute(*reversed(range(x.dim())))
    view.copy_(x)
    return view


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are bit-equal, including NaN."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    kind = kinds[first.element_size()]
    return torch.equal(first.contiguous().view(kind), second.contiguous().view(kind))
