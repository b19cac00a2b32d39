"""The README is short, its figure matches its numbers, and its code runs."""

import json
import re
import sys

import pytest
import torch
from PIL import Image

from tests.docs.pages import README, ROOT, block

ASSETS = ROOT / "docs" / "assets"


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130


def test_the_figure_is_small_and_sharp():
    figure = ASSETS / "figure.webp"
    assert figure.stat().st_size < 400_000
    with Image.open(figure) as image:
        assert image.width >= 1600


def test_the_readme_has_the_numbers_of_the_figure():
    rows = json.loads((ASSETS / "figure" / "demo_results.json").read_text())["rows"]
    line = re.search(r"^\| synthetic demo.*$", README.read_text(), re.MULTILINE)[0]
    assert [f"{row['mean']} ± {row['std']}" for row in rows] == [
        cell.removesuffix("(folded) ").strip() for cell in line.split("|")[2:5]
    ]


@pytest.mark.parametrize("weights", ["random", "published"])
def test_the_python_example_runs(weights, data_dir, tmp_path, monkeypatch):
    code = block(README, "import torch")
    if weights == "random":
        code = code.replace('"mobilenet_v2", weights="mobilenet_v2.pth"', '"random"')
    else:
        (tmp_path / "mobilenet_v2.pth").symlink_to(data_dir("weights/mobilenet_v2_imagenet.pth"))
        monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    proposals, masks = names["proposals"], names["masks"]
    assert masks.shape[:2] == proposals.score.shape == (2, 20)
    assert torch.equal(masks.flatten(2).any(2), proposals.seed_index >= 0)
    assert proposals.count.min() > 0


def test_the_figure_shows_what_is_computed(data_dir, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.delitem(sys.modules, "readme_figure", raising=False)
    import readme_figure

    steps = readme_figure.compute(
        ASSETS / "figure" / "coffee.jpg", data_dir("weights/mobilenet_v2_imagenet.pth")
    )
    assert steps.masks.shape[1:] == steps.image.shape[:2]
    for mask, box in zip(steps.masks, steps.boxes.astype(int), strict=True):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == box.tolist()
    chosen = steps.cosine[range(readme_figure.KERNELS), steps.index]
    assert chosen == pytest.approx(steps.cosine.max(1), abs=1e-5)
