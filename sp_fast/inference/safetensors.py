"""Models in safetensors files: weights, and in the metadata the config and the class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

SAFETENSORS = ".safetensors"
_KEY = "sp_fast"


def write_safetensors(
    path: Path, state: Mapping[str, Tensor], config: str, classes: Sequence[str], version: str
) -> None:
    """Writes a model's weights, its config as text, and its classes."""
    about = json.dumps(dict(version=version, classes=list(classes), config=config))
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    path.write_bytes(save(tensors, metadata={_KEY: about}))


def read_safetensors(path: Path) -> dict[str, Any]:
    """Reads such a file as one of mmengine's checkpoints: `state_dict`, and config and classes in `meta`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one without a model's config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if about is None:
        raise ValueError(
            f"{path}: expected a model that `sp-fast export` wrote, got weights without config and classes"
        )
    found = json.loads(about)
    return dict(state_dict=state, meta=dict(cfg=found["config"], dataset_meta=dict(classes=found["classes"])))
