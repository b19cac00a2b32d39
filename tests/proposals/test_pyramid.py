"""Images at several sizes, and maps on other grids."""

import torch
import torch.nn.functional as F

from sp_fast.proposals.pyramid import cell_colours, resized, to_grid


def test_resized_keeps_the_aspect_ratio() -> None:
    images = [torch.zeros(3, 40, 100, dtype=torch.uint8), torch.zeros(3, 90, 30, dtype=torch.uint8)]
    assert [resized(one, 50, 50).shape[1:] for one in images] == [(20, 50), (50, 17)]
    assert resized(images[0], 50, 10).shape[1:] == (10, 25)
    assert resized(images[0], 100, 100) is images[0]
    assert resized(torch.zeros(3, 400, 1), 100, 100).shape == (3, 100, 1)


def test_to_grid_is_bilinear_interpolation() -> None:
    maps = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    whole, target = torch.tensor([[6, 9]] * 2), torch.tensor([[15, 20]] * 2)
    expected = F.interpolate(maps, size=(15, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(to_grid(maps, whole, (15, 20), target), expected)


def test_padding_does_not_change_maps_on_a_grid() -> None:
    maps = torch.full((2, 1, 8, 11), 123.0)
    sizes, targets = [(8, 7), (5, 11)], [(16, 13), (9, 20)]
    inner = [torch.rand(1, *size, generator=torch.Generator().manual_seed(k)) for k, size in enumerate(sizes)]
    for k, (height, width) in enumerate(sizes):
        maps[k, :, :height, :width] = inner[k]
    found = to_grid(maps, torch.tensor(sizes), (16, 20), torch.tensor(targets))
    for k, size in enumerate(targets):
        alone = F.interpolate(inner[k][None], size=size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found[k, :, : size[0], : size[1]], alone)
        rest = found[k].clone()
        rest[:, : size[0], : size[1]] = 0
        assert not rest.any()


def test_a_map_of_one_cell_fills_its_grid() -> None:
    one = torch.tensor([[1, 1]])
    assert (to_grid(torch.full((1, 1, 1, 1), 3.0), one, (4, 5), torch.tensor([[4, 5]])) == 3).all()


def test_cell_colours_are_means_of_cells() -> None:
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[0, :2, :3] = 255
    image[2, 2:, 3:] = 102
    colours = cell_colours([image, image[:, :2]], [(2, 2), (1, 2)])
    assert colours.shape == (2, 3, 2, 2)
    assert colours[0, 0].tolist() == [[1, 0], [0, 0]]
    torch.testing.assert_close(colours[0, 2], torch.tensor([[0, 0], [0, 0.4]]))
    assert colours[1, 0].tolist() == [[1, 0], [0, 0]]
