"""Saliency masks of seeds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, reference, seed_saliency
from tests.ops.op_cases import (
    assert_near,
    draw_maps,
    needs_extension,
    scattered,
)


@pytest.mark.parametrize("valid", [None, torch.tensor([[5, 4], [7, 6]])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saliency", [seed_saliency, reference.seed_saliency])
def test_autocast_changes_nothing(saliency, dtype, valid):
    features = torch.randn(2, 64, 7, 6, generator=torch.Generator().manual_seed(0))
    expected = saliency(features, [(3, 3)], valid=valid)
    with torch.autocast("cpu", dtype=dtype):
        got = saliency(features, [(3, 3)], valid=valid)
    assert torch.equal(got.masks.words, expected.masks.words)
    assert torch.equal(got.score, expected.score)


@st.composite
def maps(draw, whole):
    """Features and the sizes of their valid parts.

    whole: small integers, so that every similarity is exact. Otherwise normally distributed with at least two
    channels, so that no similarity is constant up to rounding, which the normalisation would amplify.
    """
    features, valid, random = draw_maps(draw, st.integers(1 if whole else 2, 8), whole)
    if draw(st.booleans()):
        features = scattered(features)
    return features, valid, random


@given(maps(whole=True), st.integers(0, 6), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_given_seeds_with_dot_equal_the_reference(case, number, threshold):
    features, valid, random = case
    seeds = torch.randint(-3, 4, (features.shape[0], number, features.shape[1]), generator=random)
    seeds = seeds.to(features.dtype)
    got = seed_saliency(features, seeds=seeds, valid=valid, threshold=threshold)
    expected = reference.seed_saliency(features, seeds=seeds, valid=valid, threshold=threshold)
    assert torch.equal(got.masks.words, expected.masks.words)
    assert_near(got.score, expected.score)
    assert torch.equal(got.seeds, seeds)


@given(
    maps(whole=False),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    st.sampled_from(["dot", "cosine"]),
)
def test_grids_equal_the_reference_up_to_rounding(case, grid, similarity):
    features, valid, _ = case
    got = seed_saliency(features, grid, valid=valid, similarity=similarity)
    expected = reference.seed_saliency(features, grid, valid=valid, similarity=similarity)
    assert_near(got.seeds, expected.seeds)
    # A cell within rounding of the threshold may fall either way.
    wide, exact, narrow = (
        reference.seed_saliency(features, seeds=got.seeds, valid=valid, similarity=similarity, threshold=t)
        for t in (0.4999, 0.5, 0.5001)
    )
    assert (narrow.masks.unpack() <= got.masks.unpack()).all()
    assert (got.masks.unpack() <= wide.masks.unpack()).all()
    clear = (narrow.masks.words == wide.masks.words).all(-1)
    torch.testing.assert_close(got.score[clear], exact.score[clear], rtol=1e-4, atol=1e-4)


def test_seeds_are_adaptive_average_pooling():
    features = torch.randn(2, 5, 7, 10)
    got = seed_saliency(features, [(3, 4), (1, 1), (16, 16)]).seeds
    parts = [F.adaptive_avg_pool2d(features, size).flatten(2).transpose(1, 2) for size in ((3, 4), 1, 16)]
    assert_near(got, torch.cat(parts, 1))
    assert torch.equal(seed_saliency(features, (3, 4)).seeds, got[:, :12])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_gives_the_same_alone_and_padded(similarity, dtype):
    sizes = [(25, 42), (13, 42), (25, 17), (1, 9)]
    images = [torch.randn(32, *size).to(dtype) for size in sizes]
    batch = torch.full((4, 32, 26, 44), torch.nan, dtype=dtype)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    grid = [(4, 5), (2, 2)]
    together = seed_saliency(batch, grid, valid=torch.tensor(sizes), similarity=similarity)
    for i, image in enumerate(images):
        alone = seed_saliency(image[None], grid, similarity=similarity)
        rows, columns = sizes[i]
        masks = together.masks[i].unpack()
        assert torch.equal(masks[:, :rows, :columns], alone.masks[0].unpack())
        assert masks.sum() == alone.masks.area().sum()
        assert_near(together.score[i], alone.score[0])
        assert_near(together.seeds[i], alone.seeds[0])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_gives_empty_masks(similarity, value):
    features = torch.rand(2, 4, 5, 6) + 0.1
    features[0, 2, 3, 3] = value
    got = seed_saliency(features, (2, 2), similarity=similarity, threshold=0.0)
    assert got.masks.area()[0].tolist() == [0] * 4
    assert got.score[0].tolist() == [0] * 4
    assert (got.masks.area()[1] == 30).all()


def test_constant_similarity_gives_an_empty_mask():
    got = seed_saliency(torch.ones(1, 3, 4, 4), (2, 2), threshold=0.0)
    assert got.masks.area().tolist() == [[0] * 4]
    assert got.score.tolist() == [[0] * 4]


def test_a_cell_at_the_threshold_is_inside():
    features = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    got = seed_saliency(features, seeds=torch.ones(1, 1, 1), threshold=0.5)
    assert got.masks.unpack().tolist() == [[[[False, True, True]]]]
    assert got.score.item() == 0.75


def test_results_have_no_gradient():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    got = seed_saliency(features, (2, 2))
    assert not got.seeds.requires_grad
    assert not got.score.requires_grad


@pytest.mark.parametrize(("batch", "number"), [(0, 3), (2, 0)])
def test_empty(batch, number):
    got = seed_saliency(torch.randn(batch, 3, 4, 5), seeds=torch.randn(batch, number, 3))
    assert got.masks.words.shape == (batch, number, 1)
    assert got.score.shape == (batch, number)


X = torch.randn(2, 3, 4, 5)
S = torch.randn(2, 6, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: seed_saliency(X[0], (2, 2)),
            ValueError,
            r"features: expected shape \[B, D, H, W\], got \[3, 4, 5\]",
        ),
        (lambda: seed_saliency(X.double(), (2, 2)), TypeError, "features: expected dtype.*got float64"),
        (lambda: seed_saliency(X[..., :0], (2, 2)), ValueError, "features: expected height and width"),
        (lambda: seed_saliency(X), ValueError, "grid, seeds: expected exactly one"),
        (lambda: seed_saliency(X, (2, 2), seeds=S), ValueError, "grid, seeds: expected exactly one"),
        (lambda: seed_saliency(X, []), ValueError, "grid: expected at least one"),
        (lambda: seed_saliency(X, (2, 0)), ValueError, "grid: expected .* at least 1"),
        (lambda: seed_saliency(X, [(2, 2), (2,)]), ValueError, "grid: expected"),
        (lambda: seed_saliency(X, seeds=S[:, :, :2]), ValueError, r"seeds: expected shape \[2, M, 3\]"),
        (
            lambda: seed_saliency(X, seeds=S.half()),
            TypeError,
            "seeds: expected the dtype of features, float32",
        ),
        (
            lambda: seed_saliency(X, seeds=S, valid=torch.ones(2, 3).int()),
            ValueError,
            "valid: expected shape",
        ),
        (lambda: seed_saliency(X, seeds=S, valid=torch.ones(2, 2)), TypeError, "valid: expected dtype int64"),
        (
            lambda: seed_saliency(X, seeds=S, valid=torch.tensor([[4, 5], [5, 5]])),
            ValueError,
            "valid.*, got 5",
        ),
        (
            lambda: seed_saliency(X, (2, 2), valid=torch.tensor([[4, 5], [4, 0]])),
            ValueError,
            "valid.*, got 0",
        ),
        (lambda: seed_saliency(X, (2, 2), similarity="l2"), ValueError, "similarity: expected one of"),
        (lambda: seed_saliency(X, (2, 2), threshold=2), ValueError, "threshold: expected a number in"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
@pytest.mark.parametrize("valid", [None, torch.tensor([[4, 5], [2, 3]])])
def test_opcheck(valid):
    torch.library.opcheck(torch.ops.sp_fast.pool_seeds.default, (X, [2, 2, 1, 3], valid))
    torch.library.opcheck(torch.ops.sp_fast.seed_saliency.default, (X, S, valid, True, 0.5))


def test_masks_are_packed():
    assert isinstance(seed_saliency(X, (2, 2)).masks, PackedMasks)
