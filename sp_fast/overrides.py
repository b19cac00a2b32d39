"""Applies `--cfg-options` after checking their keys: a misspelt one would otherwise do nothing."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

# Entries that mmengine or this package reads, though not every config has them.
_READ = ("find_unused_parameters", "from_scratch", "model_wrapper_cfg", "activation_checkpointing", "compile")
# Sections whose keys are arguments, so that building them refuses unknown ones.
_ARGUMENTS = (
    *("train_dataloader", "val_dataloader", "test_dataloader", "randomness"),
    *("model.prompts", "model.supervision", "model.proposer"),
)


def apply_overrides(cfg: Any, options: Mapping[str, Any]) -> None:
    """Merges entries into a config after checking that it has them.

    A new key is accepted where a class or function takes it as an argument, which then checks it, and
    anywhere if marked with a plus sign: `+model.train_cfg.new=1`.

    Args:
        cfg: mmengine's config, changed in place.
        options: values by dotted key, as mmengine's DictAction gives them.

    Raises:
        ValueError: the config has no such entry; names the nearest one.
    """
    for key in options:
        if not key.startswith("+"):
            _check(cfg, key)
    try:
        cfg.merge_from_dict({key.removeprefix("+"): value for key, value in options.items()})
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"--cfg-options: this config has no such entry: {error}") from None


def _check(cfg: Any, key: str) -> None:
    place: Any = cfg._cfg_dict
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(place, (list, tuple)):
            if not part.isdigit() or int(part) >= len(place):
                numbers = [str(index) for index in range(len(place))]
                raise _unknown(parts, depth, numbers)
            place = place[int(part)]
        elif isinstance(place, Mapping) and part in place:
            place = place[part]
        elif not isinstance(place, Mapping) or not _accepts(place, parts, depth):
            raise _unknown(parts, depth, list(place) if isinstance(place, Mapping) else [])
        else:
            return


def _accepts(place: Mapping[str, Any], parts: list[str], depth: int) -> bool:
    """Whether a new key may belong in a section, whose class checks it when it is built."""
    if depth == 0:
        from mmengine.runner import Runner

        return parts[0] in (*inspect.signature(Runner.__init__).parameters, *_READ)
    close = difflib.get_close_matches(parts[depth], list(place), n=1, cutoff=0.8)
    return not close and ("type" in place or ".".join(parts[:depth]) in _ARGUMENTS)


def _unknown(parts: list[str], depth: int, there: list[str]) -> ValueError:
    section = ".".join(parts[:depth])
    nearest = difflib.get_close_matches(parts[depth], there, n=1, cutoff=0.0)
    mend = f"Did you mean {'.'.join([*parts[:depth], *nearest, *parts[depth + 1 :]])}? " if nearest else ""
    return ValueError(
        f"--cfg-options: {'.'.join(parts)}: this config has no {parts[depth]!r}"
        f"{f' in {section}' if section else ''}. {mend}Mark a new entry with a plus sign: "
        f"+{'.'.join(parts)}=VALUE"
    )
