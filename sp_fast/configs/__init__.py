"""The shipped configs, found by name: `knet_r50/pretrain` is `pretrain/knet_r50.py` in this folder."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def config_names() -> list[str]:
    """Names of all configs: `<model>/<stage>[_<variant>]`, or `<folder>/<file>`.

    The models are the files in `_base_`: `finetune/knet_r50_coco_5.py` is `knet_r50/finetune_coco_5`.
    """
    return sorted(_files())


def find_config(name: str) -> Path:
    """Find the file of a config by its name or path.

    Raises:
        FileNotFoundError: no such config; the message suggests the closest name.
    """
    files = _files()
    for path in (Path(name), FOLDER / name, FOLDER / f"{name}.py", files.get(name.removesuffix(".py"), FOLDER)):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, files, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise FileNotFoundError(
        f"CONFIG: expected a config's name (see `sp-fast train --list`) or file, got {name!r}{hint}"
    )


def _files() -> dict[str, Path]:
    """The file of each config by name."""
    models = sorted((path.stem for path in (FOLDER / "_base_").glob("*.py")), key=len, reverse=True)
    files = {}
    for path in FOLDER.glob("[a-z]*/[a-z]*.py"):
        stage, name = path.parent.name, path.stem
        model = next((one for one in models if f"{name}_".startswith(f"{one}_")), name)
        trains = stage in ("pretrain", "finetune")
        files[f"{model}/{stage}{name.removeprefix(model)}" if trains else f"{stage}/{name}"] = path
    return files


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
