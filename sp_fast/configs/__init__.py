"""The shipped configs, found by name: `knet_r50/pretrain` is `pretrain/knet_r50.py` in this folder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def config_names() -> list[str]:
    """Names of all configs: `<model>/<stage>[_<variant>]`, or `<folder>/<file>`."""
    paths = FOLDER.glob("[a-z]*/[a-z]*.py")
    return sorted(_name(path.relative_to(FOLDER).with_suffix("")) for path in paths)


def find_config(name: str) -> Path:
    """Find the file of a config by its name or path.

    Raises:
        FileNotFoundError: no such config; the message suggests the closest name.
    """
    if Path(name).is_file():
        return Path(name)
    for path in FOLDER.glob("[a-z]*/[a-z]*.py"):
        place = path.relative_to(FOLDER).with_suffix("")
        if name.removesuffix(".py") in (_name(place), place.as_posix()):
            return path
    near = difflib.get_close_matches(name, config_names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise FileNotFoundError(
        f"CONFIG: expected a config's name (see `sp-fast train --list`) or file, got {name!r}{hint}"
    )


def _name(place: Path) -> str:
    folder, stem = place.parts
    if folder not in ("pretrain", "finetune"):
        return f"{folder}/{stem}"
    for variant in ("official", "shared"):
        if stem.endswith(f"_{variant}"):
            return f"{stem.removesuffix(f'_{variant}')}/{folder}_{variant}"
    return f"{stem}/{folder}"


def model_of_mmdet(name: str) -> dict[str, Any]:
    """Load the model of one of mmdet's configs as a plain dict.

    Args:
        name: path below mmdet's `configs`, such as `queryinst/queryinst_r50_fpn_1x_coco.py`.

    Raises:
        FileNotFoundError: mmdet is installed without its configs.
    """
    import mmdet
    from mmengine.config import Config

    path = Path(mmdet.__file__).parent / ".mim" / "configs" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"expected mmdet's config in {path}, which does not exist; install mmdet's wheel: "
            "pip install mmdet==3.3.0"
        )
    return Config.fromfile(path).model.to_dict()
