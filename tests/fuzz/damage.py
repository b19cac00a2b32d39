"""Random damage to JSON values and to bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, -1, 0.5, 1e9, 1e308, -1e308, 2**31, 2**63, 10**40, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", "1", "../../etc", "/", "a\0b", "\ud800", "é" * 300, "0" * 50, "~~~~", "a.png")
OTHERS = (None, True, False, [], {}, [[]], [None], [[1, 2], [3, 4], [5, 6]], {"size": [2, 2], "counts": [4]})
WILD = st.sampled_from((*NUMBERS, *TEXTS, *OTHERS)) | st.floats() | st.integers() | st.text(max_size=5)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield value, key
        yield from _places(inner)


@st.composite
def damaged_value(draw: st.DrawFn, value: Any) -> Any:
    """The value with one to four entries replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(value))
        if not places:
            return value
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if how == "replace":
            holder[key] = copy.deepcopy(draw(WILD))  # drawn again, it must not have changed
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with one to four places overwritten, cut out, cut off or filled in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(("overwrite", "overwrite", "cut out", "cut off", "insert")))
        part = draw(st.binary(min_size=1, max_size=4)) if how in ("overwrite", "insert") else b""
        end = {"overwrite": start + len(part), "cut off": len(content), "insert": start}.get(how)
        end = start + draw(st.integers(1, 40)) if end is None else end
        content = content[:start] + part + content[end:]
    return content


def damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file of the value, damaged in its entries or in its bytes."""
    whole = json.dumps(value).encode()
    return damaged_value(value).map(lambda one: json.dumps(one).encode()) | damaged_bytes(whole)
