"""Tables, markdown and the picture, of numbers that are made up here; verdicts; the page's own text stays."""

import io

import pytest
from rich.console import Console

pytest.importorskip("mmdet")

from sp_fast.files import write_json
from sp_fast.report.study_figure import write_figure
from sp_fast.report.study_markdown import BEGIN, END, markdown, write_fragment
from sp_fast.report.study_table import print_table
from sp_fast.study.evaluation import NAMES
from sp_fast.study.pieces import RESULT, all_pieces, seconds_left
from sp_fast.study.results import collect, verdict
from sp_fast.study.variants import VARIANTS

OPTIONS = dict(
    size=384, images=50_000, finetune_steps=600, pretrain=dict(batch_size=32), finetune=dict(batch_size=16)
)
COVERAGE = dict(objects=9, mean_best_iou=0.25, above_half=0.125)
QUALITY = {
    "images": 12,
    "masks_per_image": 17.5,
    "by_size": {
        "all": COVERAGE,
        "large": dict(objects=0, mean_best_iou=None, above_half=None),
    },
}


def precision(value):
    return dict.fromkeys((*NAMES, "best_iou"), value)


def finish(piece, value):
    """Writes a result as the study does."""
    result = {"device": "a device", "seconds": 60.0, "wall_seconds": 90.0}
    result["log"] = [{"step": 1, "loss": 9.0, "s2_loss_mask": 2.0}, {"step": 2, "loss": 8.0}]
    if piece.kind == "pretrain":
        result |= {"images": 64, "images_per_second": 250.0}
        result["evaluations"] = [{"step": 2, "class_agnostic": precision(value / 8)}]
    else:
        ends = {"classes": precision(value / 4), "class_agnostic": precision(value)}
        starts = {"classes": precision(0.0), "class_agnostic": precision(value / 2)}
        result["evaluations"] = [{"step": 1, **starts}, {"step": 2, **ends}]
        result["labelled"] = {"images": 29, "objects": 180}
    write_json(result, piece.folder / RESULT)


def results(folder, values, seeds=(0, 1, 2), skip=()):
    pieces = all_pieces(folder, list(VARIANTS), seeds)
    for piece in pieces:
        if piece.variant not in skip:
            finish(piece, values(piece))
    return collect(OPTIONS, "K-Net", "sp-fast study mini-coco DATA", pieces, {"paper": {"train": QUALITY}})


def steady(piece):
    """Cosine 2 points above labels for every seed, which differ by 1."""
    return 10.0 + piece.seed + (2.0 if piece.variant == "cosine" else 0.0)


def test_means_spreads_and_differences(tmp_path):
    found = results(tmp_path, steady)
    assert found["complete"]
    entry = found["summary"]["cosine"]["10"]["class_agnostic"]
    assert entry == {"values": {"0": 12.0, "1": 13.0, "2": 14.0}, "mean": 13.0, "spread": 1.0}
    assert found["summary"]["cosine"]["100"]["classes"]["mean"] == 3.25
    pairs = {(one["first"], one["second"], one["percent"]): one for one in found["differences"]}
    gain = pairs["cosine", "labels", "10"]
    assert gain["seeds"] == 3
    assert gain["ap"] == gain["ar"] == gain["best_iou"] == {"mean": 2.0, "spread": 0.0, "verdict": "higher"}
    assert pairs["cosine", "labels", "0"]["ap"]["mean"] == 0.25
    assert pairs["boxes-cosine", "boxes", "100"]["ap"]["verdict"] == "within the noise"
    assert ("boxes", "none", "0") not in pairs  # there is nothing before pre-training


def test_verdict_asks_for_three_seeds_and_a_t_test():
    assert verdict([5.0]) == "1 seed: cannot tell"
    assert verdict([5.0, 5.1]) == "2 seeds: cannot tell"
    assert verdict([1.5, 2.0, 2.5]) == "higher"  # 2 +- 0.29, times 4.3
    assert verdict([-1.5, -2.0, -2.5]) == "lower"
    assert verdict([1.0, 2.0, 3.0]) == "within the noise"  # 2 +- 0.58
    assert verdict([1.0, 2.0, 3.0, 2.0]) == "higher"  # 2 +- 0.41, times 3.2


@pytest.mark.parametrize(("least", "shown"), [(40.0, "47.0±7.0"), (2.0, "9.00±7.00")])
def test_table_fits_eighty_columns(tmp_path, least, shown):
    printed = io.StringIO()
    print_table(
        results(tmp_path, lambda piece: least + 7 * piece.seed, skip=("official",)),
        Console(file=printed, width=80),
    )
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = printed.getvalue()
    for variant in VARIANTS.values():
        assert variant.title in text  # on one line
    assert shown in text
    assert "…" not in text
    assert "9 runs are left" in text
    official = next(line for line in lines if "official preset" in line)
    assert official.split()[3:] == ["-", "-", "-", "-", "0"]
    assert "cosine - labels, 10 %: +0.00" in text


def test_markdown_has_what_was_measured_and_no_more(tmp_path):
    text = markdown(results(tmp_path, steady, skip=("official",)), "curves.png")
    assert "```\nsp-fast study mini-coco DATA\n```" in text
    assert "on a device;" in text
    assert "| no labels: as pre-trained | objects: AP | AP50 | AR | AR large | best IoU | seeds |\n" in text
    assert f"| prompts by cosine {'| 1.62 ± 0.12 ' * 5}| 3 |\n" in text
    assert text.count("| no pre-training |") == 2
    assert f"| prompts by cosine {'| 13.0 ± 1.0 ' * 5}| 3.25 ± 0.25 | 3.25 ± 0.25 | 3 |" in text
    assert f"| the official preset {'| - ' * 7}| 0 |" in text
    gain = " | +2.00 ± 0.00 | higher" * 4
    assert f"by 1.8 AP in the paper | cosine - labels | 10 %{gain} | 3 |" in text
    assert "official - cosine" not in text
    assert "| paper, train | 12 | 17.5 | 0.250 | 12.5% | -, - |" in text
    assert "10 %: 29 images, 100 %: 29 images." in text
    assert "Pre-training saw 250.0 to 250.0 images a second" in text
    assert "![Learning curves](curves.png)" in text
    empty = markdown(results(tmp_path / "empty", steady, skip=tuple(VARIANTS)))
    assert "no device yet" in empty
    assert "images a second" not in empty


def test_fragment_replaces_itself_and_leaves_the_page(tmp_path):
    page = tmp_path / "docs" / "page.md"
    write_fragment(page, "first")
    page.write_text(f"# Title\n\nbefore\n\n{page.read_text()}\nafter\n")
    write_fragment(page, "second\n")
    text = page.read_text()
    assert text == f"# Title\n\nbefore\n\n{BEGIN}\n\nsecond\n\n{END}\n\nafter\n"
    page.write_text(text.replace(END, ""))
    with pytest.raises(ValueError, match=r"page\.md: expected both markers in order"):
        write_fragment(page, "third")


def test_picture_of_some_or_no_runs(tmp_path):
    write_figure(tmp_path / "some.png", results(tmp_path / "some", steady, skip=("official",)))
    write_figure(tmp_path / "none.png", results(tmp_path / "none", steady, skip=tuple(VARIANTS)))
    for name in ("some", "none"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_time_left_is_that_of_finished_runs_of_the_kind(tmp_path):
    pieces = all_pieces(tmp_path, ["none", "cosine"], [0])
    assert seconds_left(pieces) is None
    finish(pieces[0], 1.0)
    assert seconds_left(pieces) is None  # no pre-training was timed yet
    finish(pieces[2], 1.0)
    assert pieces[2].kind == "pretrain"
    assert seconds_left(pieces) == 3 * 90
