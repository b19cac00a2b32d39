"""The sdist, and a wheel built from it and used outside of the checkout. No network, no compiler."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Every compiler call fails.
NO_COMPILER = {"CC": "false", "CXX": "false", "SP_FAST_CUDA": "0", "SP_FAST_EXTENSION": ""}
SDIST = "from setuptools import build_meta; build_meta.build_sdist({out!r})"


def run(*command, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def copied(tracked, tmp_path_factory) -> Path:
    """A copy of the sources, since building writes beside them."""
    folder = tmp_path_factory.mktemp("copy")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(copied, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    result = run("-c", SDIST.format(out=str(folder)), cwd=copied, SP_FAST_CUDA="0", SP_FAST_EXTENSION="0")
    assert result.returncode == 0, result.stderr
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> tuple[Path, str]:
    """The wheel and the output of its build."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--wheel-dir", folder]
    result = run("-m", "pip", "wheel", "-v", *options, sdist, cwd=folder, **NO_COMPILER)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("*.whl")
    return built, result.stdout + result.stderr


def test_sdist_has_everything_that_build_and_tests_need(sdist, tracked):
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [name for name in tracked if name.split("/")[0] in ("csrc", "kernels", "sp_fast", "tests")]
    assert len(wanted) > 150
    wanted += ["CMakeLists.txt", "Makefile", "README.md", "LICENSE", "pyproject.toml", "setup.py"]
    assert not set(wanted) - packed


def test_wheel_built_without_a_compiler_has_the_package_and_one_warning(wheel, tracked):
    built, said = wheel
    assert said.count("sp_fast: the extension did not build") == 1
    assert "Install a C++ compiler" in said
    with zipfile.ZipFile(built) as archive:
        packed = set(archive.namelist())
    wanted = [name for name in tracked if name.startswith("sp_fast/")]
    wanted += [f"sp_fast/{name}" for name in tracked if name.startswith("kernels/") and name.endswith(".py")]
    assert any(name.startswith("sp_fast/configs/pretrain/") for name in wanted)
    assert not set(wanted) - packed
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"sp_fast"}


USE = """
import sys, warnings
sys.path += [{installed!r}, {packages!r}]
with warnings.catch_warnings(record=True) as given:
    warnings.simplefilter("always")
    import sp_fast
    from sp_fast import ops
assert sp_fast.__file__.startswith({installed!r}), sp_fast.__file__
assert ops.__file__.startswith({installed!r}), ops.__file__
assert [w.category for w in given if "sp_fast" in str(w.message)] == [RuntimeWarning], given
assert "plain PyTorch" in str(given[-1].message)
import torch
found = ops.seed_saliency(torch.arange(24.0).view(1, 1, 4, 6), (2, 2))
assert found.masks.area().sum() > 0
assert ops.mask_nms(found.masks, found.score)[0, 0] >= 0
"""


def test_installed_wheel_runs_the_ops_away_from_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    options = ["--no-deps", "--no-index", "--no-cache-dir", "--target", installed]
    result = run("-m", "pip", "install", *options, wheel[0], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # Without `site`, so that no .pth file leads back to an editable checkout.
    code = USE.format(installed=str(installed), packages=str(Path(torch.__file__).parents[1]))
    result = run("-I", "-S", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_requested_extension_without_a_compiler_is_an_error(copied):
    settings = {**NO_COMPILER, "SP_FAST_EXTENSION": "1"}
    result = run("setup.py", "-q", "build_ext", cwd=copied, **settings)
    assert result.returncode != 0
    assert "sp_fast: the extension did not build" in result.stderr
