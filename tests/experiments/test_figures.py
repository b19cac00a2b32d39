"""Figures of experiments."""

import io

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sp_fast.data.coco import load_coco
from sp_fast.data.store import in_order, store_path, write_store
from sp_fast.experiments import Analysis, Experiment, Figure, Row, pictures
from sp_fast.experiments.figures import bars, epochs, kernels, masks
from sp_fast.experiments.paper.pictures import figure5, figure6
from sp_fast.experiments.pictures import sampled
from sp_fast.experiments.plan import PROPOSALS, Plan
from sp_fast.experiments.report import PAGE, TABLE, write_report
from sp_fast.experiments.results import collect
from sp_fast.experiments.store import Source
from sp_fast.experiments.worker import train_arguments
from sp_fast.files import write_json
from sp_fast.plots import head
from tests.experiments import made_up


def heights(axes) -> list[float]:
    return [round(bar.get_height(), 3) for bar in axes.patches]


def test_bars_show_values_beside_the_papers(finished: Plan) -> None:
    axes = bars.draw(finished, collect(finished)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10 %", "100 %"]
    # Row by row: on 10 %, on 100 % and the paper's on 100 %, which the second row does not have.
    assert heights(axes) == [13, 21, 21.7, 16, 24, 17, 25, 23.5]
    hatched = [bar.get_hatch() is not None for bar in axes.patches]
    assert hatched == [False, False, True, False, False, False, False, True]
    left, right = axes.patches[1], axes.patches[2]
    assert left.get_x() + left.get_width() <= right.get_x()
    assert 0.5 < left.get_x() < right.get_x() + right.get_width() < 1.5
    labels = [text.get_text() for text in axes.figure.legends[0].texts]
    assert labels == ["no pre-training", "pseudo labels [alone]", "saliency prompts", "the paper's value"]


def test_a_row_that_was_not_run_has_the_papers_bar_alone(plan: Plan, tmp_path) -> None:
    assert bars.draw(plan, collect(plan)) is None
    assert epochs.draw(plan, collect(plan)) is None
    for run in plan.needed(["prompts"], [1]):
        made_up.finish(plan, run, tmp_path / "images")
    axes = bars.draw(plan, collect(plan)).axes[0]
    assert heights(axes) == [21.7, 17, 25, 23.5]
    (line,) = epochs.draw(plan, collect(plan)).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [4.25, 8.5, 12.75, 17])


def test_curves_are_drawn_by_epoch_where_its_length_is_known(finished: Plan) -> None:
    results = collect(finished)
    for row in results["rows"].values():
        row["trainings"]["10 %"]["steps_per_epoch"] = 5
        row["trainings"]["100 %"].pop("steps_per_epoch", None)
    few, many = epochs.draw(finished, results).axes
    assert (few.get_title(), few.get_xlabel(), few.get_ylabel()) == ("10 %", "epoch", "AP")
    assert many.get_xlabel() == "step"
    assert [list(line.get_xdata()) for line in few.lines] == [[2, 4, 6, 8]] * 3
    assert list(many.lines[0].get_xdata()) == [20, 40, 60, 80]


def drawn(plan: Plan, *figures: Figure) -> Plan:
    """The plan with figures in its experiment."""
    object.__setattr__(plan.experiment, "figures", figures)
    return plan


def test_the_report_has_the_figures_and_says_what_is_missing(plan: Plan, tmp_path) -> None:
    drawn(
        plan,
        Figure("compared", "Bars & values.", bars.draw),
        Figure("proposed", "Masks.", masks.proposals),
        Figure("predicted", "Found.", masks.predictions),
        Figure("none", "Nothing.", lambda plan, results: None),
    )
    for run in plan.needed(["prompts"], [0]):
        made_up.finish(plan, run, tmp_path / "images")
    write_report(plan, Source("demo"), Console(file=io.StringIO()))
    text = (plan.out / PAGE).read_text()
    note = f"Not complete: 4 of {len(plan.runs)} runs."
    assert f"Bars &amp; values. {note} <code>compared.png</code>" in text
    assert text.count(note) == 6  # captions and texts in place of the images
    assert "Nothing." not in text
    table = (plan.out / TABLE).read_text()
    assert f"![Bars & values. {note}](compared.png)" in table
    for name in ("compared", "proposed", "predicted"):
        with Image.open(plan.out / f"{name}.png") as image:
            assert image.width == 1352
    assert not list(plan.out.glob("none*"))

    for run in plan.runs.values():
        made_up.finish(plan, run, tmp_path / "images")
    write_report(plan, Source("demo"), Console(file=io.StringIO()))
    assert "Not complete" not in (plan.out / PAGE).read_text()


def test_masks_are_not_drawn_without_images_or_files(finished: Plan, tmp_path) -> None:
    results = collect(finished)
    figure = masks.predictions(finished, results)
    assert [axes.get_ylabel() for axes in figure.axes] == ["annotated", "predicted"]
    assert masks.proposals(finished, results) is not None
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert masks.predictions(finished, results) is None
    assert masks.proposals(finished, results) is None
    empty = Plan(finished.experiment, tmp_path / "empty", [0])
    assert masks.predictions(empty, results) is None
    assert masks.proposals(empty, results) is None


def test_pseudo_labels_are_sampled_from_their_store(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pyarrow")
    made_up.write_images(tmp_path, count=5)
    path = tmp_path / "truth.json"
    coco = load_coco(path)
    every_other, named = sampled(path, 3), sampled(path, 9, ["4.png", "none.png"])
    write_store(store_path(path), path, coco, coco["images"], in_order(coco))
    monkeypatch.setattr(pictures, "json", None)
    for found, stored, names in (
        (every_other, sampled(path, 3), ["1.png", "2.png", "4.png"]),
        (named, sampled(path, 9, ["4.png", "none.png"]), ["4.png"]),
    ):
        assert [image["file_name"] for image in found["images"]] == names
        assert stored["images"] == found["images"]
        for key in ("image_id", "segmentation"):
            assert [one[key] for one in stored["annotations"]] == [one[key] for one in found["annotations"]]


def test_a_damaged_store_is_told_and_the_file_is_read(tmp_path) -> None:
    pytest.importorskip("pyarrow")
    made_up.write_images(tmp_path)
    path = tmp_path / "truth.json"
    coco, plain = load_coco(path), sampled(path, 3)
    store = store_path(path)
    write_store(store, path, coco, coco["images"], in_order(coco))
    counts = coco["annotations"][0]["segmentation"]["counts"].encode()
    store.write_bytes(store.read_bytes().replace(counts, counts[::-1]))
    with pytest.warns(UserWarning, match=r"truth\.arrow: damaged \(checksum .*truth\.json is read instead"):
        assert sampled(path, 3) == plain


class Bright:
    """A model whose one kernel has the brightness of the image as its mask."""

    def kernel_masks(self, image, size):
        torch = pytest.importorskip("torch")
        return torch.full((1, *size), image.mean() / 255.0)


def test_an_analysis_computes_kernel_maps_and_the_report_draws_them(tmp_path, monkeypatch) -> None:
    loaded = []
    monkeypatch.setattr(kernels, "load", lambda path: loaded.append(path) or Bright())
    images = tmp_path / "images"
    images.mkdir()
    for value in (0, 51, 102, 153):
        Image.new("L", (8, 8), value).save(images / f"{value:03}.png")
    analysis = Analysis("sp_fast.experiments.figures.kernels:kernel_maps", options={"images": str(images)})
    rows = [Row(name, f"model {name}", analyses={kernels.ANALYSIS: analysis}) for name in ("a", "b")]
    plan = Plan(Experiment("kernels", "Kernels", rows, {"AP": "AP"}), tmp_path / "out", [0])
    assert kernels.draw(plan, {}) is None
    run = plan.of("a", kernels.ANALYSIS, 0)
    run.folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoint: expected a file"):
        kernels.kernel_maps(run.folder, None, images=str(images))
    # Two of the four, evenly spread: 0 and 102.
    result = kernels.kernel_maps(run.folder, None, images=str(images), checkpoint="model.pth", limit=2)
    assert result == {"images": 2, "kernels": 1}
    assert loaded == ["model.pth"]
    np.testing.assert_allclose(np.load(run.folder / "kernels.npy"), 0.2, atol=1e-6)
    assert {path.name for path in run.folder.iterdir()} == {"kernels.npy", "progress.json"}
    kernels.kernel_maps(run.folder, tmp_path / "training", images=str(images))
    assert loaded[1] == tmp_path / "training" / "latest.pth"
    write_json(result, run.folder / "result.json")
    figure = kernels.draw(plan, {})
    assert figure.axes[0].get_title() == "model a"
    # The report accepts runs that are not trainings.
    drawn(plan, Figure("maps", "Maps.", kernels.draw))
    write_report(plan, Source("demo"), Console(file=io.StringIO()))
    assert "kernels of a" in (plan.out / PAGE).read_text()


def test_figure5_takes_proposals_and_predictions_of_one_row() -> None:
    experiment = figure5("/data", pretrain_epochs=3, finetune_epochs=5)
    (row,) = experiment.rows
    assert row.proposals is not None
    assert row.pretrain.epochs == 3
    assert row.finetune["COCO 10 %"].epochs == 5
    assert [figure.name for figure in experiment.figures] == ["figure5a", "figure5b"]


def test_figure6_compares_two_epochs_with_a_model_of_others(tmp_path) -> None:
    experiment = figure6("/data")
    assert "paper's settings" not in experiment.title  # it is the paper that takes two epochs
    assert "after 2 epochs of COCO" in experiment.figures[0].caption
    assert "after 7 steps of COCO" in figure6("/data", finetune_steps=7).figures[0].caption
    plan = Plan(experiment, tmp_path, [0])
    assert [row.name for row in experiment.rows] == ["scratch", "moco_v2", "sp", "full"]
    words = {}
    for row in ("scratch", "moco_v2", "sp"):
        run = plan.of(row, "COCO", 0)
        words[row] = train_arguments(dict(run.spec), run.folder, 0, {})
        assert words[row][words[row].index("--epochs") + 1] == "2"
        assert words[row][words[row].index("--total-batch") + 1] == "96"
        maps = plan.of(row, kernels.ANALYSIS, 0)
        assert maps.needs == {"trained": run.key}
        assert maps.spec["options"] == {"images": "/data/val2017"}
    assert "--from-scratch" in words["scratch"]
    assert "--weights" not in words["scratch"]
    assert "/data/weights/moco_v2_r50.pth" in words["moco_v2"]
    assert plan.of("sp", PROPOSALS, 0) is not None
    full = plan.of("full", kernels.ANALYSIS, 0)
    assert full.needs == {}
    assert full.spec["options"]["checkpoint"] == "/data/weights/knet_r50_coco.pth"
    assert full.spec["function"] == "sp_fast.experiments.figures.kernels:kernel_maps"
    assert "/data/weights/knet_r50_coco.pth" in experiment.inputs


@pytest.mark.parametrize("name", ["figure1", "figure3", "figure4", "figure5", "figure6"])
def test_each_figure_is_drawn(name) -> None:
    experiment = Source(name, {"data_root": "/data"}).load()
    assert {figure.name.rstrip("ab") for figure in experiment.figures} == {name}


def test_a_long_title_fits_above_a_narrow_figure() -> None:
    figure = matplotlib.figure.Figure(figsize=(5.2, 3))
    head(figure, "Figure 3: AP by epoch on COCO 10 %, not with the paper's settings (4 of 7 runs), seed 0")
    figure.draw_without_rendering()
    place = figure.texts[0].get_window_extent()
    assert 0 <= place.x0 < place.x1 <= figure.bbox.width
