"""The CUDA kernels of seed pooling, run on the CPU, against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.ops import reference
from tests.cuda.map_cases import LAYOUTS, drawn_maps, laid_out
from tests.ops.op_cases import assert_near, generator

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Also more windows than the map has cells.
SIZES = st.tuples(st.integers(1, 11), st.integers(1, 11))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def pool(on_cpu):
    ops = on_cpu("pool_seeds")

    def pool_seeds(features, grids, valid=None):
        return ops.pool_seeds(features, [n for pair in grids for n in pair], valid)

    return pool_seeds


def check(pool, features, grids, valid=None):
    got = pool(features, grids, valid)
    assert got.is_contiguous()
    assert_near(got, reference.pool_seeds(features, grids, valid))


@FEW
@given(case=drawn_maps(), grids=st.lists(SIZES, min_size=1, max_size=2))
def test_any_size(pool, case, grids):
    features, valid = case
    check(pool, features, grids, valid)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_groups_of_channels_and_tiles_of_windows(pool, layout, dtype):
    depth = 136 if dtype == torch.float32 else 264
    features = torch.randn(1, depth, 7, 10, generator=generator(0)).to(dtype)
    check(pool, laid_out(features, layout), [(1, 2), (9, 8)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (16, 16), (1, 70), (70, 1), (25, 42), (8, 8)])
def test_windows_of_one_cell_to_the_whole_map(pool, layout, grid):
    features = laid_out(torch.randn(1, 16, 25, 42, generator=generator(1)), layout)
    check(pool, features, [grid])
    check(pool, features, [grid], torch.tensor([[17, 31]]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_grids_than_one_launch_takes(pool, layout):
    features = laid_out(torch.randn(1, 9, 6, 7, generator=generator(2)), layout)
    check(pool, features, [(1 + g % 3, 1 + g % 2) for g in range(37)])


def test_maps_too_wide_for_sums_of_columns(pool):
    check(pool, torch.randn(1, 3, 2, 400, generator=generator(3)), [(2, 5), (1, 100)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grids", [[(8, 9)], [(1, 1), (2, 3)]])
def test_an_image_gives_the_same_bits_alone_and_padded(pool, layout, grids):
    images = [torch.randn(16, *size, generator=generator(4)) for size in ((9, 14), (5, 14), (9, 8), (1, 1))]
    batch = torch.full((4, 16, 11, 17), torch.nan)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    valid = torch.tensor([image.shape[1:] for image in images])
    together = pool(laid_out(batch, layout), grids, valid)
    for seeds, image in zip(together, images, strict=True):
        assert torch.equal(seeds, pool(laid_out(image[None], layout), grids)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_valid_is_clamped(pool, layout, dtype):
    features = laid_out(torch.randn(3, 8, 5, 6, generator=generator(5)), layout)
    most = torch.iinfo(dtype).max
    valid = torch.tensor([[0, -1], [most, 6], [6, -most]], dtype=dtype)
    clamped = torch.tensor([[1, 1], [5, 6], [5, 1]])
    assert torch.equal(pool(features, [(2, 2), (9, 8)], valid), pool(features, [(2, 2), (9, 8)], clamped))
    strided = torch.stack([clamped, clamped], -1)[..., 1]
    assert torch.equal(pool(features, [(2, 2)], strided), pool(features, [(2, 2)], clamped))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_stays_in_its_windows(pool, layout, value):
    features = torch.randn(1, 8, 6, 6, generator=generator(6))
    features[0, 3, 2, 4] = value
    got = pool(laid_out(features, layout), [(3, 3), (10, 10)])
    assert_near(got, reference.pool_seeds(features, [(3, 3), (10, 10)]))
    assert not got[0, 5, 3].isfinite()
    assert got[0, :, 4].isfinite().all()


def test_large_halves_do_not_overflow(pool):
    features = torch.full((1, 8, 4, 4), 60000.0, dtype=torch.float16)
    for layout in LAYOUTS:
        assert torch.equal(pool(laid_out(features, layout), [(1, 1)]), features[:, None, :, 0, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": [2]}, ValueError, "grid: expected pairs"),
        ({"grid": [2, 0]}, ValueError, "grid: expected sizes of at least 1"),
        ({"grid": [2, 2**30]}, ValueError, "grid: expected sizes"),
        ({"grid": [2**16, 2**16]}, ValueError, "grid: expected fewer than"),
        ({"features": torch.zeros(1, 2, 3)}, ValueError, "features: expected shape"),
        ({"features": torch.zeros(1, 2, 0, 3)}, ValueError, "features: expected height and width"),
        ({"features": torch.zeros(1, 2, 3, 3).double()}, TypeError, "features: expected dtype"),
        ({"valid": torch.ones(2, 2).long()}, ValueError, "valid: expected shape"),
        ({"valid": torch.ones(1, 2)}, TypeError, "valid: expected dtype"),
    ],
)
def test_errors(on_cpu, change, error, message):
    given = {"features": torch.zeros(1, 2, 3, 3), "grid": [2, 2], "valid": None, **change}
    with pytest.raises(error, match=message):
        on_cpu("pool_seeds").pool_seeds(**given)
