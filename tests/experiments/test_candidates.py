"""How pseudo labels are chosen, and how steps are timed, with stand-ins for what takes long."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.experiments import candidates, pace
from sp_fast.experiments.experiment import Training
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.scheduler import RunFailedError
from sp_fast.proposals.scores import Coverage


@pytest.fixture
def data(tmp_path):
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    coco = {
        "images": [{"id": i, "file_name": f"a/{i}.png", "height": 8, "width": 8} for i in range(30)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": square} for i in range(1, 30)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    save_coco(coco, tmp_path / "truth.json")
    path = str(tmp_path / "truth.json")
    return FitData(str(tmp_path), path, str(tmp_path), path, str(tmp_path), path, 100, 30, 1, False)


def choose(data, monkeypatch, ious, seconds):
    """The choice among candidates with these mean best IoUs and seconds per image, and the time it takes."""
    names, sampled, clock = list(ious), [], [0.0]

    def propose(images, out, backbone, one):
        sampled.append({path.relative_to(images).as_posix() for path in images.rglob("*.png")})
        clock[0] += len(sampled[-1]) * seconds[one["name"]]
        out.write_text(one["name"])
        return len(one["name"])

    def score(out, truth):
        return SimpleNamespace(by_size={"all": Coverage(29, ious[out.read_text()], 0.25)})

    monkeypatch.setattr(candidates, "CANDIDATES", {name: {"name": name, "options": {}} for name in names})
    monkeypatch.setattr(candidates, "_propose", propose)
    monkeypatch.setattr(candidates, "score_proposals", score)
    # Of this module alone: a frozen clock elsewhere makes joining a process wait for ever.
    monkeypatch.setattr(candidates, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    choice, takes = candidates.choose_proposals(data, {"name": "random"}, 7, lambda *_: None)
    assert len({frozenset(one) for one in sampled}) == 1
    assert 8 <= len(sampled[0]) <= candidates.SAMPLED
    assert "a/0.png" not in sampled[0]  # it has no objects
    return choice, takes


def test_the_candidate_that_fits_the_labels_best_is_chosen(data, monkeypatch):
    choice, takes = choose(data, monkeypatch, {"x": 0.1, "y": 0.4, "z": 0.3}, {"x": 0.1, "y": 0.5, "z": 0.1})
    assert choice.value == {"name": "y", "options": {"max_masks": 7}, "channels": 1}
    assert takes == pytest.approx(0.5 * data.images_count)
    assert choice.reason.startswith("mean best IoU 0.40 with your labels, 25% above 0.5")
    assert "0.10 (x)" in choice.reason
    assert "0.30 (z)" in choice.reason


def test_one_that_takes_too_long_for_all_images_is_not(data, monkeypatch):
    slow = candidates.SECONDS / 100 + 1
    choice, _ = choose(data, monkeypatch, {"x": 0.1, "y": 0.4, "z": 0.3}, {"x": 0.1, "y": slow, "z": 0.1})
    assert choice.value["name"] == "z"
    assert "0.40 (y; too slow)" in choice.reason


def test_all_slow_ones_stay_in_the_choice(data, monkeypatch):
    slow = candidates.SECONDS / 100 + 1
    choice, _ = choose(data, monkeypatch, {"x": 0.1, "y": 0.4}, {"x": slow, "y": 1.5 * slow})
    assert choice.value["name"] == "y"


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_candidates_can_be_made(name, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    one = candidates.CANDIDATES[name]
    size = None if one["size"] is None else 64
    few = {"sizes": [64]} if size is None else {}
    small = {**one, "size": size, "options": {**one["options"], **few, "max_masks": 3}}
    candidates._propose(tmp_path, tmp_path / "masks.json", {"name": "mobilenet_v2"}, small)
    assert len(load_coco(tmp_path / "masks.json")["images"]) == 1


WORKER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
run = json.loads((folder / "run.json").read_text())
options = run["spec"]["options"]
assert run["kind"] == "train" and options["default_hooks.logger.interval"] == 1
assert options["train_cfg.val_interval"] == run["spec"]["steps"] == 6
coco = json.loads(pathlib.Path(run["spec"]["annotations"]).read_text())
(folder / "1" / "vis_data").mkdir(parents=True)
seconds = [9.0, 5.0, 0.5, 0.25, 0.75, 0.125]  # the last is that of the evaluation
lines = [json.dumps({"step": step, "time": one}) for step, one in enumerate(seconds, start=1)]
(folder / "1" / "vis_data" / "scalars.json").write_text("\\n".join(lines))
print(len(coco["images"]), "images")
sys.exit(len(coco["images"]) != 4)
"""


def test_steps_are_timed_after_the_first_two(data, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(pace, "WORKER", (sys.executable, str(tmp_path / "worker.py")))
    clock = iter([100.0, 110.0, 200.0, 210.0])
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def training(batch):
        return Training("x", "photos", data.labels, options={"train_dataloader.batch_size": batch})

    # Of the 10 seconds, 6 steps take 3, and the evaluation of 4 images half a second.
    assert pace.measure_pace(training(2)) == pace.Pace(step=0.5, evaluated=0.125, start=6.5)
    with pytest.raises(RunFailedError, match=r"(?s)to measure their time failed:.*6 images"):
        pace.measure_pace(training(3))
    assert len(load_coco(data.labels)["images"]) == 30
