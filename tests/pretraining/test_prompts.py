"""Compares prompts and kernel supervision with Eq. 5 to 9, written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sp_fast.pretraining.kernel_supervision import KernelSupervision, matched_kernels
from sp_fast.pretraining.prompts import PromptGenerator, PromptInjector


def test_prompt_is_the_mean_feature_inside_the_box():
    features = torch.arange(2 * 3 * 4 * 8, dtype=torch.float32).reshape(2, 3, 4, 8)
    # Pixels of a 32 x 64 input: stride 8. The second box covers cells 2..4 x 1..2.
    boxes = torch.tensor([[[0, 0, 64, 32], [16, 8, 40, 24.0]], [[8, 8, 16, 16], [0, 0, 0, 0.0]]])
    prompts = PromptGenerator((0,))([features], boxes, torch.tensor([2, 1]), (32, 64))
    assert torch.allclose(prompts[0, 0], features[0].mean((1, 2)))
    assert torch.allclose(prompts[0, 1], features[0, :, 1:3, 2:5].mean((1, 2)))
    assert torch.allclose(prompts[1, 0], features[1, :, 1, 1])
    assert not prompts[1, 1].any()


def test_prompts_of_several_levels_are_averaged():
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)
    boxes, count = torch.tensor([[[0, 0, 16, 32.0]]]), torch.tensor([1])
    both = PromptGenerator((0, -1))([fine, coarse], boxes, count, (32, 32))
    one, other = (PromptGenerator((level,))([fine, coarse], boxes, count, (32, 32)) for level in (0, 1))
    assert torch.allclose(both, (one + other) / 2)


def test_levels_by_name():
    pyramid = [torch.randn(1, 4, size, size) for size in (16, 8, 4)]  # P2 to P4 of 64 pixels
    boxes, count = torch.tensor([[[0, 0, 40, 24.0]]]), torch.tensor([1])
    for index, name in enumerate(("P2", "P3", "P4")):
        by_name, by_index = (
            PromptGenerator(level)(pyramid, boxes, count, (64, 64)) for level in (name, (index,))
        )
        assert torch.equal(by_name, by_index)


def test_box_size_pools_each_box_at_the_level_of_its_size():
    """FPN's rule: k = floor(4 + log2(sqrt(w h) / 224)), here clamped to P2 .. P5."""
    pyramid = [torch.randn(1, 4, 1024 // stride, 1024 // stride) for stride in (4, 8, 16, 32)]
    sides = {10: 2, 111: 2, 112: 3, 223: 3, 224: 4, 447: 4, 448: 5, 1000: 5}
    boxes = torch.tensor([[[16, 8, 16 + side, 8 + side] for side in sides]], dtype=torch.float32)
    boxes = torch.cat([boxes, torch.tensor([[[0, 0, 448, 112.0], [0, 0, 0, 0]]])], 1)
    levels = [*sides.values(), 4, 2]
    count = torch.tensor([len(levels)])
    prompts = PromptGenerator("box_size")(pyramid, boxes, count, (1024, 1024))
    for row, level in enumerate(levels):
        one = PromptGenerator(f"P{level}")(pyramid, boxes[:, row : row + 1], torch.tensor([1]), (1024, 1024))
        torch.testing.assert_close(prompts[:, row], one[:, 0], msg=f"P{level}")


def test_box_size_sends_gradients_only_to_the_level_used():
    pyramid = [torch.randn(1, 4, 64 // stride, 64 // stride, requires_grad=True) for stride in (4, 8, 16, 32)]
    boxes, count = torch.tensor([[[0, 0, 40, 40.0], [0, 0, 64, 64]]]), torch.tensor([2])
    PromptGenerator("box_size")(pyramid, boxes, count, (64, 64)).sum().backward()
    assert [bool(one.grad.any()) for one in pyramid] == [True, False, False, False]


def test_box_size_gives_zeros_for_padding():
    pyramid = [torch.randn(1, 4, 16, 16), torch.randn(1, 4, 8, 8)]
    boxes = torch.tensor([[[0, 0, 40, 40.0], [0, 0, 64, 64]]])
    prompts = PromptGenerator("box_size")(pyramid, boxes, torch.tensor([1]), (64, 64))
    assert prompts[0, 0].any()
    assert not prompts[0, 1].any()


def test_detached_prompts_have_no_gradient():
    features = torch.randn(1, 4, 4, 4, requires_grad=True)
    boxes, count = torch.tensor([[[0, 0, 16, 16.0]]]), torch.tensor([1])
    assert not PromptGenerator((0,), detach=True)([features], boxes, count, (32, 32)).requires_grad
    PromptGenerator((0,))([features], boxes, count, (32, 32)).sum().backward()
    assert features.grad.any()


def test_cosine_takes_the_most_similar_prompt_of_the_image():
    kernels = torch.randn(5, 8)
    prompts = torch.randn(2, 3, 8)
    decorated, index = PromptInjector("cosine")(kernels, prompts, torch.tensor([3, 2]))
    for image, available in enumerate((3, 2)):
        similarity = F.cosine_similarity(kernels[:, None], prompts[image, None, :available], dim=-1)
        assert torch.equal(index[image], similarity.argmax(1))
        assert torch.allclose(decorated[image], kernels + prompts[image, index[image]])


@pytest.mark.parametrize("strategy", ["cosine", "random", "sequential", "none"])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)])
def test_kernels_without_prompts_are_unchanged(strategy, shape):
    kernels = torch.randn(shape)
    for prompts in (torch.randn(2, 3, 8), torch.zeros(2, 0, 8)):
        decorated, index = PromptInjector(strategy)(kernels, prompts, torch.zeros(2, dtype=torch.int64))
        assert torch.equal(decorated, kernels.expand(2, 5, 8))
        assert torch.equal(index, torch.full((2, 5), -1))


def test_sequential_cycles_through_the_prompts():
    prompts = torch.randn(2, 3, 8)
    decorated, index = PromptInjector("sequential")(torch.zeros(5, 8), prompts, torch.tensor([3, 2]))
    assert index.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 0]]
    assert torch.equal(decorated[1], prompts[1, [0, 1, 0, 1, 0]])


def test_random_uses_every_prompt_and_no_padding():
    _, index = PromptInjector("random")(torch.zeros(400, 4), torch.randn(2, 5, 4), torch.tensor([5, 2]))
    assert set(index[0].tolist()) == {0, 1, 2, 3, 4}
    assert set(index[1].tolist()) == {0, 1}


def test_no_kernel_takes_a_dropped_prompt_and_evaluation_drops_none():
    torch.manual_seed(0)
    injector = PromptInjector("sequential", drop_rate=0.5)
    prompts = torch.eye(8).expand(64, 8, 8)
    count = torch.full((64,), 6)
    decorated, index = injector(torch.zeros(8, 8), prompts, count)
    taken = decorated.sum(1) > 0  # [B, prompt]
    assert not taken[:, 6:].any()
    assert 0.4 < taken[:, :6].float().mean() < 0.6
    assert (index[~taken.any(1)] == -1).all()
    injector.eval()
    decorated, _ = injector(torch.zeros(8, 8), prompts, count)
    assert (decorated.sum(1)[:, :6] > 0).all()


def test_kernel_supervision_is_equation_9():
    torch.manual_seed(0)
    kernels, seeds = torch.randn(3, 2, 4, 6), torch.randn(2, 3, 10)
    index = torch.tensor([[[0, 2, -1], [1, -1, -1]], [[3, 1, -1], [0, -1, -1]], [[-1, -1, -1], [2, -1, -1]]])
    module = KernelSupervision(10, 6, loss_weight=2.0, reduction="sum")
    targets = module.linear(seeds)
    expected = 0.0
    for stage in range(3):
        for image in range(2):
            for proposal in range(3):
                kernel = index[stage, image, proposal]
                if kernel >= 0:
                    cosine = F.cosine_similarity(
                        targets[image, proposal], kernels[stage, image, kernel], dim=0
                    )
                    expected = expected + 1 - cosine
    assert torch.allclose(module(kernels, seeds, index), 2.0 * expected, rtol=1e-5)


def test_centered_loss_is_large_if_all_kernels_point_one_way():
    """Without centering, kernels that all point along the bias have almost no loss, whatever the seeds."""
    torch.manual_seed(0)
    seeds, index = torch.randn(2, 3, 10), torch.tensor([[[0, 1, 2], [3, 2, -1]]])
    kernels = torch.tensor([1.0, 0, 0, 0]) + 1e-3 * torch.randn(1, 2, 4, 4)
    as_written, centered = KernelSupervision(10, 4), KernelSupervision(10, 4, center=True)
    for module in (as_written, centered):
        torch.nn.init.normal_(module.linear.weight, std=1e-3)
        module.linear.bias.data = torch.tensor([1.0, 0, 0, 0])
    assert as_written(kernels, seeds, index) < 1e-4
    assert centered(kernels, seeds, index) > 0.1


def test_centering_ignores_padding_and_unmatched_kernels():
    """Equals Eq. 9 on the matched vectors minus their means."""
    torch.manual_seed(0)
    kernels, seeds = torch.randn(2, 2, 4, 6), torch.randn(2, 3, 10)
    index = torch.tensor([[[0, 2, -1], [1, -1, -1]], [[3, 1, -1], [0, -1, -1]]])
    module = KernelSupervision(10, 6, center=True)
    targets = module.linear(seeds)
    wanted = torch.cat([targets[0, :2], targets[1, :1]])
    wanted = wanted - wanted.mean(0)
    expected = 0.0
    for stage in range(2):
        matched = torch.stack([kernels[stage, b, index[stage, b, n]] for b, n in ((0, 0), (0, 1), (1, 0))])
        expected += (1 - F.cosine_similarity(matched - matched.mean(0), wanted, dim=1)).mean()
    assert module(kernels, seeds, index).item() == pytest.approx(expected.item(), rel=1e-5)


def test_kernel_supervision_without_a_pair_is_zero_with_zero_gradients():
    module = KernelSupervision(10, 6)
    kernels = torch.randn(3, 2, 4, 6, requires_grad=True)
    for proposals in (0, 3):
        loss = module(kernels, torch.randn(2, proposals, 10), torch.full((3, 2, proposals), -1))
        loss.backward()
        assert loss.item() == 0
        assert not kernels.grad.any()
        assert not module.linear.weight.grad.any()


@pytest.mark.parametrize("levels", ["P4", ("P3", "P5"), "box_size"])
@pytest.mark.parametrize("strategy", ["cosine", "random", "sequential", "none"])
def test_prompts_and_supervision_do_not_wait_for_the_gpu(levels, strategy):
    """Uses fake GPU tensors: reading a value on the host raises an error."""
    with FakeTensorMode(), torch.device("cuda"):
        pyramid = [torch.zeros(2, 16, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
        boxes, count = torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64)
        prompts = PromptGenerator(levels)(pyramid, boxes, count, (64, 64))
        decorated, index = PromptInjector(strategy, drop_rate=0.5)(torch.zeros(6, 16), prompts, count)
        assert (decorated.shape, index.shape) == ((2, 6, 16), (2, 6))
        assigned = torch.zeros(3, 2, 6, dtype=torch.int64)
        kernels, seeds = torch.zeros(3, 2, 6, 16), torch.zeros(2, 3, 32)
        loss = KernelSupervision(32, 16)(kernels, seeds, matched_kernels(assigned, 3))
        assert loss.device.type == "cuda"


def test_matched_kernels_inverts_the_assignment():
    assigned = torch.tensor([[[-1, 1, 0, -1], [-1, -1, -1, 0]]])
    assert matched_kernels(assigned, 3).tolist() == [[[2, 1, -1], [3, -1, -1]]]
    assert matched_kernels(torch.full((2, 1, 4), -1), 0).shape == (2, 1, 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PromptInjector("nearest"), "strategy: expected one of cosine"),
        (lambda: PromptInjector(drop_rate=1.0), "drop_rate"),
        (lambda: PromptGenerator(()), "levels"),
        (lambda: PromptGenerator(("P4", "box_size")), "levels: expected 'box_size' without other levels"),
        (lambda: KernelSupervision(4, 4, reduction="none"), "reduction"),
        (
            lambda: KernelSupervision(4, 4)(
                torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 5), torch.zeros(1, 1, 1).long()
            ),
            "seeds: expected",
        ),
        (
            lambda: PromptGenerator((3,))(
                [torch.zeros(1, 1, 2, 2)], torch.zeros(1, 1, 4), torch.ones(1).long(), (4, 4)
            ),
            "levels: expected indices into a pyramid of 1",
        ),
    ],
)
def test_errors_name_the_argument(make, words):
    with pytest.raises(ValueError, match=words):
        make()
