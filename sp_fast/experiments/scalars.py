"""The values that mmengine logs while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_scalars(folder: Path) -> dict[int, dict[str, Any]]:
    """All logged values by step, from every start of the run; of a step that was logged again, the last."""
    steps: dict[int, dict[str, Any]] = {}
    for log in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # the last line is being written
            steps.setdefault(int(entry["step"]), {}).update(entry)
    return steps
