"""A step in parts is the step of the whole batch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed

from sp_fast.mmdet_plugin.batch_parts import BatchParts, NotEnoughMemoryError
from sp_fast.mmdet_plugin.samplers import bounds
from tests.training.runs import run_ranks


class Linear(BaseModel):
    """Squared error, a mean over images; too many images at once are too much."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.most, self.seen = most, []

    def forward(self, inputs, targets, mode):
        self.seen.append(len(inputs))
        error = self.layer(torch.stack(list(inputs))).squeeze(1) - torch.stack(list(targets))
        loss = {"loss_square": error.square().mean()}
        if len(inputs) > self.most:
            # In the backward pass: gradients of earlier parts are there already.
            error.register_hook(_fail)
        return loss


def _fail(gradient):
    raise torch.OutOfMemoryError("CUDA out of memory.")


class Exhausted(torch.optim.SGD):
    """An optimiser whose state does not fit."""

    def step(self, closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def batches(steps: int, images: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, targets = (
            torch.randn(images, 3, generator=generator),
            torch.randn(images, generator=generator),
        )
        yield {"inputs": list(inputs), "targets": list(targets)}


def trained(most: int, images: int = 5, parts: int = 1, **options):
    """The model, the losses of its steps, and the parts, after three steps."""
    model, parts = Linear(most), BatchParts(parts)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **options)
    logged = []
    for batch in batches(3, images):
        logs = None
        while logs is None:
            logs = parts.train_step(model, batch, wrapper)
        logged.append(logs)
    return model, logged, parts


@pytest.mark.parametrize(("most", "count"), [(4, 2), (2, 4), (1, 8)])
def test_parts_give_the_gradients_and_losses_of_the_whole(most, count, capsys):
    whole, expected, _ = trained(most=5)
    model, logged, parts = trained(most=most)
    assert parts.count == count
    assert torch.allclose(model.layer.weight, whole.layer.weight, atol=1e-6)
    for one, other in zip(logged, expected, strict=True):
        assert one.keys() == other.keys()
        assert torch.allclose(one["loss"], other["loss"], atol=1e-6)
    assert max(model.seen[-min(count, 5) :]) <= most
    assert capsys.readouterr().out.count("out of memory") == parts.count.bit_length() - 1


@pytest.mark.parametrize(
    ("parts", "most", "sizes"), [(2, 5, [2, 3]), (3, 5, [1, 2, 2]), (2, 2, [1, 1, 1, 2])]
)
def test_parts_give_the_gradients_of_the_whole_and_are_split_when_memory_runs_out(parts, most, sizes):
    whole, expected, _ = trained(most=5)
    model, logged, _ = trained(most=most, parts=parts)
    assert model.seen[-len(sizes) :] == sizes
    assert torch.allclose(model.layer.weight, whole.layer.weight, atol=1e-6)
    for one, other in zip(logged, expected, strict=True):
        assert torch.allclose(one["loss"], other["loss"], atol=1e-6)


def train_a_share(folder):
    """In one of two processes: a step's share, 2 or 3 of 5 images, in two parts."""
    distributed.init_process_group("gloo")
    model = MMDistributedDataParallel(Linear(most=5))
    exchanged = []

    def count(_, bucket):
        exchanged.append(bucket.index())
        distributed.all_reduce(bucket.buffer())
        future = torch.futures.Future()
        future.set_result(bucket.buffer() / 2)
        return future

    model.register_comm_hook(None, count)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    parts, rank = BatchParts(2, mean_share=2.5), distributed.get_rank()
    first, end = bounds(5, 2)[rank]
    for batch in batches(3, 5):
        share = {name: items[first:end] for name, items in batch.items()}
        parts.train_step(model, share, wrapper)
    found = dict(weight=model.module.layer.weight, seen=model.module.seen, exchanged=len(exchanged))
    torch.save(found, f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


def test_unequal_shares_of_two_processes_give_the_gradients_of_the_whole(tmp_path):
    whole, _, _ = trained(most=5)
    run_ranks(2, train_a_share, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    assert [one["seen"] for one in found] == [[1, 1] * 3, [1, 2] * 3]
    assert [one["exchanged"] for one in found] == [3, 3]  # once per step
    assert torch.equal(found[0]["weight"], found[1]["weight"])
    assert torch.allclose(found[0]["weight"], whole.layer.weight, atol=1e-6)


def test_a_whole_batch_is_mmengines_step_to_the_bit():
    whole, _, _ = trained(most=5)
    model = Linear(most=5)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for batch in batches(3, 5):
        model.train_step(batch, wrapper)
    assert torch.equal(model.layer.weight, whole.layer.weight)


def test_one_image_too_many():
    with pytest.raises(NotEnoughMemoryError, match="a step of 1 image does not fit"):
        trained(most=0)


def test_gradients_of_earlier_steps_are_not_lost_in_silence():
    with pytest.raises(NotEnoughMemoryError, match=r"a step of 5 images .* smaller --batch-size"):
        trained(most=4, accumulative_counts=2)


def test_the_optimisers_state_does_not_fit():
    model = Linear(most=5)
    wrapper = OptimWrapper(Exhausted(model.parameters(), lr=0.1))
    with pytest.raises(NotEnoughMemoryError, match="the state of the optimiser does not fit"):
        BatchParts().train_step(model, next(batches(1, 5)), wrapper)
