"""One annotation file for images that lie in several folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp_fast.data.prepared import listed


def place_in_folders(coco: dict[str, Any], folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Make every `file_name` relative to the folder that holds all `folders`, and return that folder.

    Raises:
        FileNotFoundError: images that are in none of the folders.
        ValueError: names that are in more than one, or no folder that holds all.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"no such folder of images: {path}")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    missing: list[str] = []
    twice: list[str] = []
    for image in coco["images"]:
        name = image["file_name"]
        found = [path for path in paths if (path / name).is_file()]
        if len(found) == 1:
            image["file_name"] = (found[0] / name).relative_to(root).as_posix()
        else:
            (twice if found else missing).append(name)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images are in none of {listed(map(str, paths))}: {listed(missing)}"
        )
    if twice:
        raise ValueError(
            f"{len(twice)} names are in more than one of {listed(map(str, paths))}: {listed(twice)}"
        )
    return root
