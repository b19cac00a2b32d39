"""A checkpoint's config, read as data; mmengine's own reader runs the text as Python."""

from __future__ import annotations

import ast
import re
from typing import Any

# With one dot, a scope and a class; mmengine's registry imports whatever other dotted names say.
_TYPE = re.compile(r"\w+|(mmdet|mmengine|mmcv|mmpretrain)\.[A-Z]\w*")


def parse_config(text: str) -> dict[str, Any]:
    """The assignments of a config as mmengine's `Config.pretty_text` writes it: literals and `dict(...)`.

    Raises:
        ValueError: anything else, which would have to be run.
    """
    try:
        values = {}
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = _value(value)
                case _:
                    raise _unexpected(statement)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"its config cannot be read ({error})") from None
    return values


def check_types(section: Any) -> None:
    """Raise ValueError for a `type` in a config that is not the name of a registered class."""
    if isinstance(section, dict):
        kind = section.get("type")
        if kind is not None and not (isinstance(kind, str) and _TYPE.fullmatch(kind)):
            raise ValueError(
                f"its config has type={kind!r}: expected the name of a class registered with mmdet"
            )
    for value in section.values() if isinstance(section, dict) else section:
        if isinstance(value, (dict, list, tuple)):
            check_types(value)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() | ast.Name() as operand):
            return -_value(operand)
        case ast.Name(id="inf" | "nan" as name):
            return float(name)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_value(key): _value(value) for key, value in pairs if key is not None}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {_keyword(one): _value(one.value) for one in keywords}
    raise _unexpected(node)


def _keyword(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise _unexpected(keyword.value)
    return keyword.arg


def _unexpected(node: ast.AST) -> ValueError:
    line = getattr(node, "lineno", "?")
    return ValueError(f"its config has code in line {line} ({ast.unparse(node)[:60]}), expected only values")
