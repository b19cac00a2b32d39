"""Rows become runs; what is equal between rows, or does not depend on the seed, is one run."""

import dataclasses
import functools

import pytest

from sp_fast.experiments import Analysis, Experiment, Proposals, Row, Training
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.store import Source, recall, remember
from sp_fast.experiments.worker import train_arguments
from tests.experiments.tiny import tiny


def test_equal_runs_are_one(tmp_path):
    plan = Plan(tiny(), tmp_path, [0, 1])
    kinds = [run.kind for run in plan.runs.values()]
    # One folder of masks for all; for each seed one pre-training, two fine-tunings before it and two after.
    assert kinds.count("proposals") == 1
    assert kinds.count("train") == 2 * (1 + 2 + 2)
    assert plan.of("same", "few", 0) is plan.of("labels", "few", 0)
    assert plan.of("same", "many", 0) is None
    assert plan.of("labels", "few", 0) is not plan.of("labels", "few", 1)


def test_a_change_makes_other_runs(tmp_path):
    before, after = Plan(tiny(), tmp_path, [0]), Plan(tiny(steps=16), tmp_path, [0])
    assert {key for key in before.runs if key in after.runs} == {
        key for key, run in before.runs.items() if run.kind == "proposals"
    }


def test_folders_do_not_depend_on_the_rows_that_are_asked_for(tmp_path):
    plan = Plan(tiny(), tmp_path, [0])
    assert {run.key for run in plan.needed(["same"], [0])} <= {
        run.key for run in plan.needed(["labels"], [0])
    }


def test_runs_stand_after_what_they_need(tmp_path):
    seen = set()
    for run in Plan(tiny(), tmp_path, [0, 1]).needed(["same", "labels", "none"], [0, 1]):
        assert set(run.needs.values()) <= seen
        seen.add(run.key)


def test_an_analysis_is_a_run_after_its_training(tmp_path):
    maps = Analysis("package.module:function", after="pretrain", options={"images": "photos"})
    other = Analysis("package.module:function", options={"predictions": "results.json"})
    row = Row("a", "a", None, Training("c", "photos"), {}, {"maps": maps, "others": other})
    plan = Plan(Experiment("e", "e", [row], {"AP": "AP"}), tmp_path, [0, 1])
    assert plan.of("a", "maps", 1).needs == {"trained": plan.of("a", "pretrain", 1).key}
    assert plan.of("a", "maps", 0) is not plan.of("a", "maps", 1)
    assert plan.of("a", "others", 0) is plan.of("a", "others", 1)
    with pytest.raises(ValueError, match=r"after: expected one of \['pretrain'\], got 'x'"):
        dataclasses.replace(row, analyses={"maps": dataclasses.replace(maps, after="x")})


def test_fine_tuning_starts_from_an_analysis_of_a_shared_pretraining(tmp_path):
    pretrain, finetune = Training("c", "photos"), {"few": Training("c", "photos", "few.json")}
    exports = {fold: Analysis("package.module:function", "pretrain", {"fold": fold}) for fold in ("a", "b")}
    rows = [
        Row(fold, fold, None, pretrain, finetune, {"export": one}, start="export")
        for fold, one in exports.items()
    ]
    plan = Plan(Experiment("e", "e", rows, {"AP": "AP"}), tmp_path, [0])
    assert plan.of("a", "pretrain", 0) is plan.of("b", "pretrain", 0)
    for row in ("a", "b"):
        export = plan.of(row, "export", 0)
        assert export.needs == {"trained": plan.of(row, "pretrain", 0).key}
        assert plan.of(row, "few", 0).needs == {"pretrain": export.key}
    assert len(plan.runs) == 5
    order = [*plan.runs]
    assert order.index(plan.of("b", "export", 0).key) < order.index(plan.of("b", "few", 0).key)
    with pytest.raises(ValueError, match=r"start: expected an analysis after pretrain \(export\), got 'x'"):
        dataclasses.replace(rows[0], start="x")


def _make(folder, seed, size=1):
    (folder / "made").write_text(f"{seed} {size}")


def test_data_is_made_for_each_seed_where_it_depends_on_it(tmp_path):
    row = Row("a", "a", Proposals("{data}/photos"), Training("c", "{data}/photos"), {})
    experiment = Experiment("e", "e", [row], {"AP": "AP"}, prepare=_make)
    kinds = lambda plan: sorted(run.kind for run in plan.runs.values())
    assert kinds(Plan(experiment, tmp_path, [0, 1])) == ["data", "proposals", "train", "train"]
    each = dataclasses.replace(experiment, data_per_seed=True)
    assert kinds(Plan(each, tmp_path, [0, 1])) == 2 * ["data"] + 2 * ["proposals"] + 2 * ["train"]
    other = dataclasses.replace(experiment, prepare=functools.partial(_make, size=2))
    assert not Plan(experiment, tmp_path, [0]).runs.keys() & Plan(other, tmp_path, [0]).runs.keys()


def test_the_command_of_a_training(tmp_path):
    training = Training(
        "knet_r50/finetune", "a", "a.json", "b", "b.json", steps=7, arguments=["--cache", "ram"]
    )
    near = {"pretrain": tmp_path / "before"}
    arguments = train_arguments(dataclasses.asdict(training), tmp_path / "now", 3, near)
    assert arguments == [
        *("knet_r50/finetune", "--work-dir", str(tmp_path / "now"), "--seed", "3"),
        *("--images", "a", "--annotations", "a.json", "--val-images", "b", "--val-annotations", "b.json"),
        *(
            "--steps",
            "7",
            "--load-from",
            str(tmp_path / "before" / "pretrained.pth"),
            "--resume",
            "--cache",
            "ram",
        ),
    ]


def test_lengths_in_epochs(tmp_path):
    training = dataclasses.asdict(Training("knet_r50/finetune", "a", epochs=3))
    words = train_arguments(training, tmp_path, 0, {})
    assert words[words.index("--epochs") + 1] == "3"
    assert "--steps" not in words


def test_experiments_share_equal_runs(tmp_path):
    rows = tiny().rows
    one = Plan(dataclasses.replace(tiny(), rows=[rows[1]], comparisons=[]), tmp_path, [0])
    (one.of("labels", "pretrain", 0).folder / "x").mkdir(parents=True)
    renamed = dataclasses.replace(rows[1], name="b")
    other = Plan(dataclasses.replace(tiny(), rows=[renamed], comparisons=[]), tmp_path, [0])
    assert other.of("b", "pretrain", 0).folder == one.of("labels", "pretrain", 0).folder
    few, again = one.of("labels", "few", 0).key, other.of("b", "few", 0).key
    assert (few, again) == (f"labels-few-seed0-{few[-8:]}", f"b-few-seed0-{few[-8:]}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Row("a b", "a", finetune={"x": Training("c", "i")}), "name: expected letters"),
        (lambda: Row("a", "a"), "row a: expected pre-training, fine-tuning or an"),
        (lambda: Proposals("photos", kind="guess"), "kind: expected one of saliency, random_boxes"),
        (lambda: dataclasses.replace(tiny(), rows=[*tiny().rows, tiny().rows[0]]), "names that differ"),
        (lambda: dataclasses.replace(tiny(), metrics={}), "metrics: expected at least one"),
        (lambda: tiny().chosen(["nobody"]), "--rows: expected some of none, labels, same, got nobody"),
    ],
)
def test_wrong_definitions_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        wrong()


EXPERIMENT = """
from sp_fast.experiments import Experiment, Row, Training

def experiment(data_root, quick=False):
    row = Row("a", "a", finetune={"x": Training("c", data_root, steps=1 if quick else 9)})
    return Experiment("mine", "mine", [row], {"AP": "AP"})
"""


def test_an_experiment_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    source = Source(str(path), {"data_root": "photos", "quick": True})
    assert source.load().rows[0].finetune["x"] == Training("c", "photos", steps=1)
    with pytest.raises(ValueError, match=r"--data-root: the experiment .* needs it"):
        Source(str(path)).load()
    with pytest.raises(ValueError, match="--data-root: the experiment demo takes quick"):
        Source("demo", {"data_root": "photos"}).load()
    path.write_text("experiment = 3")
    with pytest.raises(ValueError, match="expected `experiment`"):
        Source(str(path)).load()
    with pytest.raises(ValueError, match=r"expected demo, .* or a Python file, got 'nothing'"):
        Source("nothing").load()


def test_a_folder_knows_its_experiment_and_all_seeds(tmp_path):
    source = Source("demo", {"quick": True})
    assert remember(tmp_path, source, [2, 0]) == [0, 2]
    assert remember(tmp_path, source, [1]) == [0, 1, 2]
    assert recall(tmp_path) == (source, [0, 1, 2])
    with pytest.raises(FileNotFoundError, match=r"--out folder of `sp-fast experiment run`"):
        recall(tmp_path / "other")
