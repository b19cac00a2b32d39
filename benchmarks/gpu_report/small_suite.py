"""Every op forward and backward at small odd sizes, for compute-sanitizer."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from gpu_report.outcomes import DONE
from sp_fast.ops import (
    PackedMasks,
    kernel_supervision_loss,
    mask_nms,
    match_prompts,
    matrix_nms,
    roi_average_pool,
    seed_saliency,
)
from sp_fast.proposals import SaliencyProposer

# Channels, height and width: less than a word of cells, odd, of 16-byte rows, and many words.
MAPS = [(1, 1, 1), (67, 3, 5), (24, 13, 24), (40, 25, 42)]


def _backward(result: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(result, leaves, torch.ones_like(result))


def masks_of(features: Tensor) -> None:
    """Saliency to proposals."""
    height, width = features.shape[2:]
    valid = torch.tensor([[height, width], [max(1, height - 2), max(1, width - 1)]], device=features.device)
    for similarity in ("dot", "cosine"):
        found = seed_saliency(features, [(2, 3), (1, 1)], valid=valid, similarity=similarity)
        mask_nms(found.masks, found.score, max_masks=3)
        matrix_nms(found.masks, found.score)
        matrix_nms(found.masks, found.score, kernel="linear")
    dense = seed_saliency(features, seeds=features.flatten(2).transpose(1, 2))
    mask_nms(dense.masks, dense.score, iou_threshold=0.9, max_masks=70)
    matrix_nms(dense.masks, dense.score)
    packed = PackedMasks.pack(dense.masks.unpack())
    packed.area(), packed.boxes()
    for preset in ("paper", "official"):
        SaliencyProposer(preset=preset).from_features(features, valid)


def pooling(features: Tensor, random: torch.Generator) -> None:
    """RoI average with its gradient."""
    height, width = features.shape[2:]
    corners = torch.rand(2, 7, 2, 2, generator=random, device=features.device)
    corners = corners * torch.tensor([width, height], device=features.device) * 1.5 - 0.2
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    leaf = features.detach().requires_grad_()
    for count in (None, torch.tensor([7, 2], device=features.device)):
        _backward(roi_average_pool(leaf, boxes, count), leaf)


def prompts(channels: int, dtype: torch.dtype, random: torch.Generator, device: str) -> None:
    """Matching and kernel supervision with their gradients."""

    def leaf(*shape: int) -> Tensor:
        x = torch.randn(*shape, channels, generator=random, device=device).to(dtype)
        return x.requires_grad_()

    for number, found in ((1, 1), (5, 0), (33, 17)):
        shared, own, prompt = leaf(number), leaf(2, number), leaf(2, found)
        count = torch.tensor([found, found // 2], device=device)
        _backward(match_prompts(shared, prompt)[0], shared, prompt)
        _backward(match_prompts(own, prompt, count)[0], own, prompt)
        kernels = leaf(3, 2, number)
        index = torch.randint(-1, number, (3, 2, found), generator=random, device=device)
        for reduction in ("mean", "sum"):
            _backward(kernel_supervision_loss(kernels, prompt, index, reduction=reduction), kernels, prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    random = torch.Generator(device).manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels, height, width in MAPS:
            x = torch.randn(2, channels, height, width, generator=random, device=device).to(dtype)
            for features in (x, x.contiguous(memory_format=torch.channels_last)):
                masks_of(features)
                pooling(features, random)
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"small suite: {dtype}, maps of {height} x {width}", flush=True)
        for channels in (1, 63, 256):
            prompts(channels, dtype, random, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
