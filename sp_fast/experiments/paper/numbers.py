"""The numbers of the paper's tables, from tables.json beside this file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_ENDINGS = {"AP": "", "AP50": "_50", "AP75": "_75", "APs": "_s", "APm": "_m", "APl": "_l"}
METRICS = {f"coco/segm_mAP{ending}": name for name, ending in _ENDINGS.items()}
BOX_METRICS = {f"boxes/mAP{_ENDINGS[name]}": name for name in ("AP", "AP50", "AP75")}


def published(table: str, metrics: Mapping[str, str] = METRICS, **row: Any) -> dict[str, float | None]:
    """Looks up the paper's values of one row, in percent.

    Args:
        table: `table1` to `table7`.
        metrics: names of measured values -> columns of the paper.
        row: what identifies the row, such as `data="coco-10"` and `pretrain="SP"`.

    Returns:
        Values by metric, None where the paper has a dash; only metrics that the table has.

    Raises:
        LookupError: no row of the table fits, or several do.
    """
    fitting = [one for one in _tables()[table] if all(one.get(key) == value for key, value in row.items())]
    if len(fitting) != 1:
        raise LookupError(f"{table}: expected one row with {row}, found {len(fitting)}")
    return {metric: fitting[0][name] for metric, name in metrics.items() if name in fitting[0]}


@functools.cache
def _tables() -> dict[str, Any]:
    return json.loads((files(__package__) / "tables.json").read_text())
