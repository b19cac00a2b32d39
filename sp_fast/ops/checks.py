"""Argument checks of the ops: errors name the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS_AND_DOUBLE = (*FLOATS, torch.float64)
INTS = (torch.int64, torch.int32)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def check_tensor(
    name: str,
    value: Tensor,
    shape: tuple[int | str, ...],
    dtypes: Sequence[torch.dtype],
    like: Tensor | None = None,
) -> None:
    """Check type, dtype, rank, sizes and device of one tensor.

    Args:
        name: name of the argument, for the message.
        value: the argument.
        shape: expected sizes; an int must match, a str stands for any size.
        dtypes: allowed dtypes.
        like: a tensor that must be on the same device as `value`.

    Raises:
        TypeError: `value` is not a tensor, or has another dtype.
        ValueError: `value` has another rank or shape, or is on another device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {_names(dtypes)}, got {_names([value.dtype])}")
    got = value.shape
    if len(got) != len(shape) or any(
        type(want) is not str and want != size for want, size in zip(shape, got, strict=True)
    ):
        wanted = ", ".join(str(s) for s in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(got)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {value.device}")


def check_same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors have the same dtype (TypeError)."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected the dtype of {other_name}, {_names([other.dtype])}, "
            f"got {_names([value.dtype])}; convert one of them with .to()"
        )


def check_map(name: str, value: Tensor) -> None:
    """Check that the last two sizes of a feature map are at least 1 (ValueError)."""
    if value.shape[-1] < 1 or value.shape[-2] < 1:
        raise ValueError(f"{name}: expected height and width of at least 1, got {list(value.shape)}")


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check that a number is in [low, high] and not NaN (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")


def check_int(name: str, value: int, low: int) -> None:
    """Check that an integer is at least `low` (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}: expected an int of at least {low}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a string is one of `choices` (ValueError)."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_grids(grid: Any) -> tuple[tuple[int, int], ...]:
    """Turn one (rows, columns) pair, or a list of pairs, into a tuple of pairs (ValueError)."""
    grids = [grid] if len(grid) == 2 and all(isinstance(side, int) for side in grid) else list(grid)
    for pair in grids:
        sides = tuple(pair) if isinstance(pair, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(
                f"grid: expected (rows, columns) of at least 1, or a list of these, got {grid!r}"
            )
    if not grids:
        raise ValueError("grid: expected at least one (rows, columns), got none")
    return tuple((int(rows), int(columns)) for rows, columns in grids)


def check_values(name: str, value: Tensor | None, low: int, high: int) -> None:
    """Check that all values of an integer CPU tensor lie in [low, high] (ValueError).

    Tensors on other devices are not checked, since reading them would synchronise; kernels clamp them.
    """
    if value is None or value.device.type != "cpu" or value.numel() == 0:
        return
    smallest, largest = (int(v) for v in value.aminmax())
    if smallest < low or largest > high:
        got = smallest if smallest < low else largest
        raise ValueError(f"{name}: expected values in [{low}, {high}], got {got}")
