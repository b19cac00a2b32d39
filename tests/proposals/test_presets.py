"""Options and presets of the proposer."""

import pytest

from sp_fast.proposals import PRESETS, SaliencyProposer
from sp_fast.proposals.presets import OPTION_NAMES, resolve_options


def test_official_preset_matches_the_authors_code() -> None:
    official = PRESETS["official"]
    assert official.grid is None
    assert official.scales == (1.0, 0.5, 0.25)
    assert (official.similarity, official.threshold, official.center) == ("cosine", 0.5, False)
    assert (official.nms, official.matrix_kernel, official.sigma) == ("matrix", "gaussian", 2.0)
    assert (official.max_masks, official.min_area) == (20, 2)
    assert (official.min_center_height, official.max_box_width, official.min_score) == (0.2, 0.95, 0.7)


def test_paper_preset_matches_the_paper() -> None:
    paper = PRESETS["paper"]
    assert paper.scales is None
    assert paper.grid == ((10, 10),)
    assert (paper.similarity, paper.threshold, paper.nms, paper.iou_threshold) == ("dot", 0.5, "mask", 0.5)
    assert (paper.min_center_height, paper.max_box_width, paper.min_score) == (None, None, None)
    assert paper.refine == PRESETS["official"].refine == "none"


def test_multiscale_preset() -> None:
    multiscale = PRESETS["multiscale"]
    assert multiscale.sizes == (640, 1280, 1920)
    assert multiscale.thresholds == (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert multiscale.ranking == "objectness"
    assert multiscale.refine == "segments"
    assert resolve_options("multiscale", threshold=0.5, sizes=[320]).thresholds == (0.5,)


def test_grid_replaces_scales_and_vice_versa() -> None:
    assert resolve_options("official", grid=(5, 7)).scales is None
    assert resolve_options("official", grid=(5, 7)).grid == ((5, 7),)
    assert resolve_options("paper", scales=[0.5]).grid is None
    assert resolve_options("paper", grid=[(4, 4), [2, 2]]).grid == ((4, 4), (2, 2))


def test_unknown_option_error_lists_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown option tresh") as error:
        SaliencyProposer(tresh=0.5)
    for name in OPTION_NAMES:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"preset": "mine"},
            ValueError,
            "preset: expected one of 'paper', 'official', 'multiscale', got 'mine'",
        ),
        ({"grid": (0, 4)}, ValueError, "grid: expected"),
        ({"grid": (4, 4), "scales": (1.0,)}, ValueError, "exactly one"),
        ({"scales": (2.0,)}, ValueError, "scales: expected factors above 0 and up to 1"),
        ({"similarity": "l2"}, ValueError, "similarity: expected one of 'dot', 'cosine'"),
        ({"threshold": 1.5}, ValueError, r"threshold: expected a number in \[0, 1\], got 1.5"),
        ({"threshold": "0.5"}, TypeError, "threshold: expected a number"),
        ({"nms": "soft"}, ValueError, "nms: expected one of 'mask', 'matrix'"),
        ({"max_masks": 0}, ValueError, "max_masks: expected an int of at least 1"),
        ({"min_area": 2.5}, TypeError, "min_area: expected an int"),
        ({"refine": "edges"}, ValueError, "refine: expected one of 'none', 'segments', got 'edges'"),
        ({"min_score": -1}, ValueError, r"min_score: expected a number in \[0, 1\]"),
        ({"center": "yes"}, TypeError, "center: expected True or False"),
        ({"threshold": (0.3, 0.5)}, ValueError, "threshold: expected one value with ranking='saliency'"),
        ({"threshold": ()}, ValueError, "threshold: expected at least one number"),
        ({"preset": "multiscale", "threshold": (0.3, 2)}, ValueError, r"threshold: expected a number in"),
        ({"sizes": (640, 1280)}, ValueError, "sizes: expected one value with ranking='saliency'"),
        ({"preset": "multiscale", "sizes": ()}, ValueError, "sizes: expected an int of at least 1"),
        ({"preset": "multiscale", "nms": "matrix"}, ValueError, "ranking: objectness needs grid, nms='mask'"),
        ({"preset": "official", "ranking": "objectness"}, ValueError, "ranking: objectness needs grid"),
        ({"ranking": "best"}, ValueError, "ranking: expected one of 'saliency', 'objectness'"),
    ],
)
def test_bad_options(options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SaliencyProposer(**options)
