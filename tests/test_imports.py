"""The import graph of the package: no cycles, no upward imports, and what needs mmdet."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sp_fast"
# From the bottom up: a part imports only itself and parts before it in this list.
ORDER = (
    "files",
    "freed_memory",
    "locks",
    "work_folder",
    "progress",
    "transfers",
    "pages",
    "ops",
    "data",
    "drawing",
    "plots",
    "weights",
    "proposals",
    "mmcv_bridge",
    "knet",
    "query_heads",
    "pretraining",
    "mmdet_plugin",
    "models",
    "configs",
    "configuration",
    "overrides",
    "run_options",
    "train",
    "inference",
    "evaluation",
    "export",
    "experiments",
    "commands",
    "cli",
    "__main__",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path
    for path in PACKAGE.rglob("*.py")
    if "configs" not in path.parts or path.name == "__init__.py"
}


def imported(path: Path, *, also_inside_functions: bool) -> set[str]:
    """The modules of this package that a file imports."""
    tree = ast.parse(path.read_text())
    if also_inside_functions:
        nodes = list(ast.walk(tree))
    else:
        nodes = list(ast.iter_child_nodes(tree))
        nodes += [inner for node in nodes if isinstance(node, ast.If | ast.Try) for inner in ast.walk(node)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
            if inner - MODULES.keys():
                found.add(node.module)
    return found & MODULES.keys()


@pytest.mark.parametrize("also_inside_functions", [False, True])
def test_no_cycles(also_inside_functions):
    graph = {
        name: imported(path, also_inside_functions=also_inside_functions) - {name, "sp_fast"}
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError shows the cycle


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_every_part_is_in_the_order():
    assert {part_of(name) for name in MODULES if name != "sp_fast"} <= {*ORDER, "kernels"}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"sp_fast"}))
def test_no_upward_imports(name):
    place = ORDER.index(part_of(name))
    for other in imported(MODULES[name], also_inside_functions=True) - {"sp_fast"}:
        if part_of(other) != "kernels":
            assert ORDER.index(part_of(other)) <= place, f"{name} imports {other}"


def test_ops_data_and_proposals_need_no_mmdet():
    code = (
        "import sys\n"
        "for name in ('mmdet', 'mmengine', 'mmcv'): sys.modules[name] = None\n"
        "import sp_fast, sp_fast.ops, sp_fast.data, sp_fast.proposals, sp_fast.weights\n"
        "sp_fast.SaliencyProposer, sp_fast.build_backbone\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
