"""Code about model families in the documentation: the toy family trains, the checkpoints load."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import sys

import pytest
import torch

pytest.importorskip("mmdet")

from tests.docs.pages import ROOT, block
from tests.mmdet_scope import mmdet_scope  # noqa: F401
from tests.pretraining.families import BASES, NARROW, batch, build, losses_of, total
from tests.pretraining.narrow import FAMILIES, HEADS, LAST_STAGE

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config

FAMILY_PAGE = ROOT / "docs" / "families.md"
GUIDE = ROOT / "docs" / "guide.md"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The module `toy.py` of the page."""
    (tmp_path / "toy.py").write_text(block(FAMILY_PAGE, "class ToyQueries"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    MODELS._module_dict.pop("ToyQueries", None)
    yield importlib.import_module("toy")
    MODELS._module_dict.pop("ToyQueries", None)


def test_the_toy_is_short():
    assert len(block(FAMILY_PAGE, "class ToyQueries").splitlines()) <= 60


def test_the_toy_family_trains(toy):
    torch.manual_seed(0)
    cfg = Config.fromstring(block(FAMILY_PAGE, 'type="SaliencyPromptPretrainer"'), ".py")
    cfg.model.supervision.seed_channels = LAST_STAGE
    model = MODELS.build(cfg.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = batch([2, 3])
    history = []
    for _ in range(30):
        losses = losses_of(model, data)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"s0.loss_mask", "s0.loss_cls", "s1.loss_mask", "s1.loss_cls", "loss_kernel"}
    for name in history[0]:
        assert history[-1][name] < 0.8 * history[0][name], name
    assert model.supervision.linear.weight.grad.any()

    plain = toy.ToyQueries(num_classes=7)
    result = plain.load_state_dict(model.export(), strict=False)
    assert set(result.missing_keys) == {"classes.weight", "classes.bias"}
    assert not result.unexpected_keys


@pytest.mark.parametrize("strategy", ["cosine", "random", "sequential", "none"])
def test_the_toy_family_accepts_the_options(toy, strategy):
    cfg = Config.fromstring(block(FAMILY_PAGE, 'type="SaliencyPromptPretrainer"'), ".py")
    model = MODELS.build({**cfg.model, "prompts": dict(levels="P3", strategy=strategy), "source": "import"})
    total(losses_of(model, batch([0, 2]))).backward()
    assert model.detector.queries.weight.grad.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_load_as_the_guide_says(family, tmp_path, monkeypatch):
    """Runs the `python -c` of the guide, with a narrow model of the family in place of the guide's."""
    code = re.fullmatch(r'python -c "\n(.*?)\n"\n', block(GUIDE, "import sp_fast.models"), re.DOTALL)[1]
    assert "'knet_mobilenet_v2/finetune'" in code
    configs, run = tmp_path / "configs" / "finetune", tmp_path / "runs" / "pretrain"
    configs.mkdir(parents=True)
    run.mkdir(parents=True)
    monkeypatch.setattr("sp_fast.configs.FOLDER", tmp_path / "configs")
    changes = Config({})
    changes.merge_from_dict({f"model.{name}": value for name, value in NARROW[family].items()})
    text = f"_base_ = [{str(BASES / f'{family}_r50.py')!r}]\nmodel = {changes.model.to_dict()!r}\n"
    (configs / f"{family}_r50.py").write_text(text)
    torch.save({"state_dict": build(family).export()}, run / "pretrained.pth")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("knet_mobilenet_v2", f"{family}_r50"), "guide.md", "exec"), {})
    missing, unexpected = (ast.literal_eval(part) for part in re.findall(r"\[.*?\]", printed.getvalue()))
    assert {name.rsplit(".", 1)[0] for name in missing} == HEADS[family]
    assert unexpected == []


def test_the_guide_loads_the_checkpoint_that_its_steps_write():
    made = {f"{folder}/pretrained.pth" for folder in re.findall(r"--work-dir (\S+)", GUIDE.read_text())}
    loaded = re.findall(r"[\w/]+/pretrained\.pth", GUIDE.read_text())
    assert len(loaded) >= 4
    assert set(loaded) <= made
