"""The CUDA kernels of seed saliency, run on the CPU, against the reference. PyTorch computes the product."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, reference
from tests.cuda.map_cases import LAYOUTS, drawn_maps, laid_out
from tests.ops.op_cases import SEEDS, assert_near, generator, scattered

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def saliency(on_cpu):
    ops = on_cpu("seed_saliency")

    def seed_saliency(features, seeds, valid=None, similarity="dot", threshold=0.5):
        words, score = ops.seed_saliency(features, seeds, valid, similarity == "cosine", threshold)
        return PackedMasks(words, *features.shape[2:]), score

    return seed_saliency


def check(saliency, features, seeds, valid=None, similarity="dot", threshold=0.5):
    """Check masks, except for cells within rounding of the threshold, and the scores of equal masks."""
    masks, score = saliency(features, seeds, valid, similarity, threshold)
    y, _ = reference.normalized_saliency(features, seeds, valid, similarity)
    expected, expected_score = reference.saliency_of_seeds(features, seeds, valid, similarity, threshold)
    different = (masks.unpack() != expected.unpack()).flatten(2)
    assert ((y - threshold).abs()[different] < 1e-5).all()
    # Bits past the last cell are 0.
    assert torch.equal(masks.area(), masks.unpack().sum((-2, -1), dtype=torch.int32))
    same = ~different.any(-1)
    torch.testing.assert_close(score[same], expected_score[same], rtol=1e-5, atol=1e-5)


@FEW
@given(
    case=drawn_maps(whole=True),
    number=st.sampled_from([0, 1, 3, 9]),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
    seed=SEEDS,
)
def test_whole_numbers_give_the_same_bits(saliency, case, number, threshold, seed):
    features, valid = case
    batch, depth = features.shape[:2]
    seeds = torch.randint(-3, 4, (batch, number, depth), generator=generator(seed)).to(features.dtype)
    masks, score = saliency(features, seeds, valid, threshold=threshold)
    expected, expected_score = reference.saliency_of_seeds(features, seeds, valid, "dot", threshold)
    assert torch.equal(masks.words, expected.words)
    assert_near(score, expected_score)


@FEW
@given(case=drawn_maps(), number=st.integers(1, 4), similarity=st.sampled_from(["dot", "cosine"]), seed=SEEDS)
def test_any_size(saliency, case, number, similarity, seed):
    features, valid = case
    batch, depth = features.shape[:2]
    if depth == 1:  # cosines of +-1: the difference of two is rounding
        similarity = "dot"
    seeds = torch.randn(batch, number, depth, generator=generator(seed)).to(features.dtype)
    check(saliency, features, seeds, valid, similarity)


@pytest.mark.parametrize("valid", [None, (1, 1), (1, 0.5), (0.6, 0.7)])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("size", [(1, 1), (31, 1), (4, 8), (3, 11), (25, 42), (30, 60), (100, 21)])
def test_rows_of_every_length(saliency, size, similarity, valid):
    random = generator(0)
    features = torch.randn(1, 8, *size, generator=random)
    if valid is not None:
        part = [max(int(n * share), 1) for n, share in zip(size, valid, strict=True)]
        features[:, :, part[0] :] = torch.nan
        features[:, :, :, part[1] :] = torch.nan
        valid = torch.tensor([part])
    check(saliency, features, torch.randn(1, 2, 8, generator=random), valid, similarity)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_several_tiles_of_channels_and_cells(saliency, layout, dtype, similarity):
    features = torch.randn(2, 136, 7, 11, generator=generator(0)).to(dtype)
    seeds = torch.randn(2, 3, 136, generator=generator(1)).to(dtype)
    check(saliency, laid_out(features, layout), scattered(seeds), None, similarity)


def test_more_images_than_one_product_takes(saliency):
    random = generator(0)
    features, seeds = torch.randn(13, 4, 2, 3, generator=random), torch.randn(13, 1, 4, generator=random)
    check(saliency, features, seeds)


@pytest.mark.parametrize(("size", "depth"), [((4, 8), 1), ((3, 11), 7)])
def test_several_products(saliency, depth, size):
    random = generator(0)
    features = torch.randn(5, depth, *size, generator=random)
    seeds = torch.randn(5, 64, depth, generator=random)
    valid = torch.tensor([[3, 2], [2, 8], [3, 7], [1, 4], [3, 8]])
    for given_valid in (None, valid):
        check(saliency, features, seeds, given_valid)
    check(saliency, torch.cat([features, features], 1), torch.cat([seeds, seeds.flip(0)], 2), valid, "cosine")


def test_many_seeds_and_channels_last_of_one_image(saliency):
    random = generator(0)
    features = laid_out(torch.randn(1, 64, 2, 9, generator=random), "channels_last")
    check(saliency, features, torch.randn(1, 300, 64, generator=random))


@pytest.mark.parametrize("threshold", [1e-30, 0.1, 1 / 3, 0.5, 0.9, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e30, 1e38])
def test_threshold_gives_the_same_bits_as_a_division(saliency, threshold, scale):
    # One channel and a seed of 1: the similarities are the features.
    features = torch.rand(1, 1, 20, 20, generator=generator(0)) * scale
    features[0, 0, 0, :3] = torch.tensor([0.0, 1.0, threshold]) * scale
    seeds = torch.ones(1, 1, 1)
    masks, score = saliency(features, seeds, threshold=threshold)
    expected, expected_score = reference.saliency_of_seeds(features, seeds, None, "dot", threshold)
    assert torch.equal(masks.words, expected.words)
    assert_near(score, expected_score)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(
    ("value", "size"),
    [(torch.nan, (5, 6)), (torch.inf, (5, 6)), (-torch.inf, (5, 6)), (torch.nan, (50, 43))],
)
def test_not_finite_gives_empty_masks(saliency, similarity, value, size):
    features = torch.rand(2, 4, *size, generator=generator(0)) + 0.1
    features[0, 2, 3, 3] = value
    masks, score = saliency(features, torch.rand(2, 2, 4) + 0.1, None, similarity, 0.0)
    assert masks.area().tolist() == [[0] * 2, [size[0] * size[1]] * 2]
    assert score[0].tolist() == [0] * 2
    assert (score[1] > 0).all()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_equal_similarities_give_empty_masks(saliency, similarity):
    constant = torch.ones(1, 3, 4, 4)
    seeds = torch.stack([torch.ones(3), torch.zeros(3), torch.full((3,), torch.nan)])[None]
    for features in (constant, torch.randn(1, 3, 4, 4, generator=generator(0))):
        masks, score = saliency(features, seeds, None, similarity, 0.0)
        assert masks.area()[0, 1:].tolist() == [0, 0]
        assert score[0, 1:].tolist() == [0, 0]
    masks, score = saliency(constant, seeds, None, similarity, 0.0)
    assert masks.area().sum() == 0
    assert score.sum() == 0


def test_cosine_of_cells_without_a_norm(saliency):
    features = torch.randn(1, 8, 3, 5, generator=generator(0))
    features[:, :, 1, 1] = 0
    features[:, :, 2, 3] = 1e-10
    seeds = torch.randn(1, 3, 8, generator=generator(1)) * torch.tensor([1e-12, 1.0, 1e6])[:, None]
    check(saliency, features, seeds, None, "cosine")


def test_valid_is_clamped(saliency):
    features = torch.randn(3, 8, 5, 6, generator=generator(5))
    seeds = torch.randn(3, 2, 8, generator=generator(6))
    given_valid = torch.tensor([[0, -1], [2**40, 6], [4, 2**31]])
    got = saliency(features, seeds, given_valid)
    expected = saliency(features, seeds, torch.tensor([[1, 1], [5, 6], [4, 6]]))
    assert torch.equal(got[0].words, expected[0].words)
    assert torch.equal(got[1], expected[1])


def test_no_channels_give_empty_masks(saliency):
    masks, score = saliency(torch.randn(2, 0, 5, 9), torch.randn(2, 3, 0))
    assert not masks.words.any()
    assert not score.any()


X, S = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": X[0]}, ValueError, "features: expected shape"),
        ({"features": X.double(), "seeds": S.double()}, TypeError, "features: expected dtype"),
        ({"seeds": S[:, :, :2]}, ValueError, "seeds: expected shape"),
        ({"seeds": S.half()}, TypeError, "seeds: expected dtype"),
        ({"valid": torch.ones(3, 2).int()}, ValueError, "valid: expected shape"),
        ({"threshold": 1.5}, ValueError, "threshold: expected"),
        ({"threshold": float("nan")}, ValueError, "threshold: expected"),
    ],
)
def test_errors(on_cpu, change, error, message):
    given = {"features": X, "seeds": S, "valid": None, "cosine": False, "threshold": 0.5, **change}
    with pytest.raises(error, match=message):
        on_cpu("seed_saliency").seed_saliency(**given)
