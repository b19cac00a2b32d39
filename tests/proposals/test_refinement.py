"""Masks that end at the edges of the image."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.proposals.refinement import distinct, image_segments, refined_saliency


def two_colours(height: int, width: int, edge: int) -> torch.Tensor:
    """A red image, green from column `edge` on."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0, :, :edge] = image[1, :, edge:] = 200
    return image


def test_segments_end_where_the_colour_changes() -> None:
    segments = image_segments(two_colours(320, 240, 130))
    assert segments.shape == (320, 240)
    assert segments.dtype == torch.int64
    assert len(segments[:, :126].unique()) == len(segments[:, 134:].unique()) == 1
    assert segments[0, 0] != segments[0, -1]


def test_segments_have_one_size_for_all_images() -> None:
    for height, width in ((64, 48), (320, 240), (1280, 960)):
        segments = image_segments(two_colours(height, width, width // 2))
        assert segments.shape == (320, 240)
        assert sorted(segments.unique().tolist()) == list(range(int(segments.max()) + 1))


def test_a_mask_is_moved_to_the_edge_of_the_image() -> None:
    # The cells of the saliency are 80 pixels wide, so it knows the edge at column 130 only roughly.
    saliency = torch.tensor([[[1.0, 0.9, 0.2]] * 4])
    segments = image_segments(two_colours(320, 240, 130))
    mask = refined_saliency(saliency, torch.tensor([0.5]), segments)[0] >= 0.5
    assert mask[:, :126].all()
    assert not mask[:, 134:].any()


def test_a_mask_that_would_change_beyond_recognition_stays() -> None:
    segments = torch.ones(3, 5, dtype=torch.int64)
    segments[0, 0] = 0
    vanished, shrunk, grown, halved = torch.zeros(4, 3, 5)
    vanished[0, :2] = 0.9  # no segment is left
    shrunk[:, :4] = 0.9  # 1 of 12 cells, an IoU of 0.08
    grown[2, 4] = 0.9  # from 1 cell to 14
    kept = torch.stack([vanished, shrunk, grown])
    kept[0, 0, 0] = 0.5
    torch.testing.assert_close(refined_saliency(kept, torch.tensor([0.6, 0.8, 0.05]), segments), kept)
    halved[0, :2] = 0.9  # an IoU of 0.5
    refined = refined_saliency(halved[None], torch.tensor([0.6]), segments)[0]
    expected = torch.where(segments == 0, 0.9, 0.9 / 14)
    torch.testing.assert_close(refined, expected, atol=2**-15, rtol=0)


def test_masks_that_refining_makes_alike_are_left_out() -> None:
    saliency = torch.zeros(4, 6, 6)
    saliency[0, :3] = saliency[1, :3] = saliency[2, 3:] = 1
    saliency[3, :, 3:] = 1  # IoU of 1 / 3 with the first
    threshold = torch.full((4,), 0.5)
    assert distinct(saliency, threshold, 0.1, 9).tolist() == [0, 2, 3]
    assert distinct(saliency, threshold, 1.0, 9).tolist() == [0, 1, 2, 3]
    assert distinct(saliency, threshold, 0.1, 2).tolist() == [0, 2]


def test_segments_are_no_coarser_than_the_map() -> None:
    assert image_segments(two_colours(480, 640, 130), 400).shape == (300, 400)
    assert image_segments(two_colours(480, 640, 130), 100).shape == (240, 320)


def test_no_masks() -> None:
    segments = torch.zeros(16, 12, dtype=torch.int64)
    assert refined_saliency(torch.zeros(0, 8, 6), torch.zeros(0), segments).shape == (0, 16, 12)


@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 6))
def test_saliency_is_averaged_over_each_segment(seed: int, masks: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    # As large as the segments, so that nothing is interpolated.
    saliency = torch.from_numpy(generator.random((masks, 7, 9), dtype=np.float32))
    segments = torch.from_numpy(generator.integers(0, count, (7, 9)))
    refined = refined_saliency(saliency, torch.zeros(masks), segments)
    for number in segments.unique():
        here = segments == number
        expected = saliency[:, here].mean(1, keepdim=True).expand(-1, int(here.sum()))
        torch.testing.assert_close(refined[:, here], expected, atol=2**-15, rtol=0)
