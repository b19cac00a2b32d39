"""Results on disk: whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any


def slug(name: str) -> str:
    """A device's name as a file's name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def write_whole(path: Path, text: str) -> None:
    """Write beside, then rename: who reads it finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of JSON that reads well in a diff."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file or no whole object in it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def copy_out(paths: list[Path], folder: str | None, most: int = 15 * 2**20) -> None:
    """Copy what there is of `paths`, the last `most` bytes of each, to `folder`, where one is named."""
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in filter(Path.exists, paths):
        with path.open("rb") as source, (Path(folder) / path.name).open("wb") as target:
            source.seek(max(0, path.stat().st_size - most))
            shutil.copyfileobj(source, target)
