"""Sources of proposals: loaded with the images, or computed from features of the student or a teacher."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.knet.targets import TARGET_STRIDE
from sp_fast.ops import PackedMasks
from sp_fast.pretraining.adapters import Adapter
from sp_fast.proposals import Proposals, SaliencyProposer
from sp_fast.proposals.objectness import means_inside
from sp_fast.transfers import to_device


class StepProposals(NamedTuple):
    """The proposals of one batch, padded to the largest count.

    Attributes:
        targets: targets of the adapter, for the losses of the base model.
        boxes: tight xyxy boxes `[B, L, 4]` in pixels of the padded input.
        seeds: seed features `[B, L, D]`.
        count: int64 `[B]`, number of proposals of each image.
    """

    targets: Any
    boxes: Tensor
    seeds: Tensor
    count: Tensor


class AnnotatedSource(nn.Module):
    """Proposals that are loaded with the images, as instances of the data samples.

    Args:
        stored_seeds: whether seeds are those that `sp-fast propose` stored (source `cached`) or the mean
            features inside the masks (source `import`).
    """

    def __init__(self, *, stored_seeds: bool) -> None:
        super().__init__()
        self.stored_seeds = stored_seeds

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Pads boxes and seeds; see `StepProposals`."""
        size = (images.shape[-2], images.shape[-1])
        targets = adapter.targets(data_samples, size)
        instances = [sample.gt_instances for sample in data_samples]
        boxes = pad_rows([_as_tensor(one.bboxes).to(images) for one in instances], 4)
        count = to_device([len(one.labels) for one in instances], images.device, torch.int64)
        if not self.stored_seeds:
            masks = adapter.target_masks(targets, data_samples, size)
            return StepProposals(targets, boxes, mean_inside(features, masks), count)
        for sample in data_samples:
            if "seeds" not in sample.gt_instances:
                path = sample.get("img_path", "an image")
                raise ValueError(
                    f"source='cached': expected seeds with the proposals of {path}, got none; give the "
                    "data set the seeds file of `sp-fast propose`, or set source='import'"
                )
        channels = max(one.seeds.shape[-1] for one in instances)
        seeds = pad_rows([one.seeds.to(images) for one in instances], channels)
        return StepProposals(targets, boxes, seeds, count)


class SharedSource(nn.Module):
    """Proposals computed in the training step from the student's last-stage features (Eq. 3-4).

    Meant for a frozen backbone, which computes these features anyway.

    Like `sp-fast propose`, it first resizes the saliency, here to the stride of the targets, and then applies
    the threshold, in fp32 even under autocast. Masks are not refined, whatever the preset says.

    Proposals do not extend into padding, but the backbone sees it: near a padded border, within the receptive
    field, features and therefore masks may differ from those of the image alone.

    Args:
        proposer: options of `SaliencyProposer`.
        target_stride: stride of the mask targets of the base model.
    """

    def __init__(self, proposer: dict | None = None, *, target_stride: int = TARGET_STRIDE) -> None:
        super().__init__()
        options = proposer or {}
        refine = options.get("refine", "none")
        if refine != "none":
            raise ValueError(
                "proposer.refine: expected 'none', since only the masks of `sp-fast propose` are refined, "
                f"got {refine!r}"
            )
        self.proposer = SaliencyProposer(**options)
        self.target_stride = target_stride

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Computes proposals of the valid part of each image; see `StepProposals`."""
        size = to_device([sample.img_shape[:2] for sample in data_samples], images.device)  # [B, 2]
        sides = zip(size.unbind(1), features.shape[-2:], images.shape[-2:], strict=True)
        valid = torch.stack([-(-side * cells // pixels) for side, cells, pixels in sides], 1)  # rounded up
        with torch.autocast(images.device.type, enabled=False):
            features = features.detach().float()
            found = self.proposer.from_features(features, valid)
            masks = self._masks(features, found, size, images.shape[-2:])
        boxes = self.target_stride * PackedMasks.pack(masks).boxes().float()  # [B, K, 4]
        boxes = boxes.minimum(size.flip(1).repeat(1, 2)[:, None])  # width and height of each image
        # A mask in a cell of almost only padding can end up empty; the others move to the front.
        there = boxes[..., 2] > 0
        order = torch.argsort(~there, dim=1, stable=True)
        masks, boxes, seeds = (_in_order(one, order) for one in (masks, boxes, found.seeds))
        count = there.sum(1)
        targets = adapter.targets_from_masks(masks.float(), boxes, count, data_samples)
        return StepProposals(targets, boxes, seeds, count)

    def _masks(
        self, features: Tensor, found: Proposals, size: Tensor, image_shape: tuple[int, int] | torch.Size
    ) -> Tensor:
        """Masks where the resized saliency reaches the threshold, bool `[B, K, H / stride, W / stride]`."""
        saliency = self.proposer.saliency(features, found)  # [B, K, h, w]
        assert found.valid is not None
        # Repeat the last cells of the image, so that resizing does not blend its border with the padding.
        row, column = (
            torch.minimum(torch.arange(side, device=size.device), found.valid[:, axis, None] - 1)
            for axis, side in enumerate(features.shape[-2:])
        )
        image = torch.arange(len(features), device=size.device)[:, None, None]
        saliency = saliency.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None]].permute(0, 3, 1, 2)
        rows, columns = (side // self.target_stride for side in image_shape)
        resized = F.interpolate(saliency, size=(rows, columns), mode="bilinear", align_corners=False)
        y, x = (
            self.target_stride * torch.arange(side, device=size.device) < size[:, axis, None]
            for axis, side in enumerate((rows, columns))
        )
        inside = (y[:, :, None] & x[:, None])[:, None]  # [B, 1, H / stride, W / stride]
        real = torch.arange(saliency.shape[1], device=size.device) < found.count[:, None]
        return (resized >= found.threshold[..., None, None]) & inside & real[..., None, None]


class TeacherSource(SharedSource):
    """Proposals computed in the training step by a frozen copy of the student's backbone.

    The copy keeps the initial weights of the student's backbone and stays in eval mode; it is not exported.

    Args:
        backbone: backbone of the student.
        proposer: options of `SaliencyProposer`.
        target_stride: stride of the mask targets of the base model.
    """

    def __init__(
        self, backbone: nn.Module, proposer: dict | None = None, *, target_stride: int = TARGET_STRIDE
    ) -> None:
        super().__init__(proposer, target_stride=target_stride)
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.backbone.eval()  # not chained: mmdet's eval() returns None

    def copy_from(self, backbone: nn.Module) -> None:
        """Copies the weights of the student's backbone."""
        self.backbone.load_state_dict(backbone.state_dict())

    def train(self, mode: bool = True) -> TeacherSource:
        """Sets the mode of the module; the copy stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Computes proposals from the copy's last stage instead of `features`; see `StepProposals`."""
        with torch.no_grad():
            features = self.backbone(images)[-1]
        return super().forward(adapter, images, features, data_samples)


def mean_inside(features: Tensor, masks: Tensor) -> Tensor:
    """Computes the mean feature inside each mask.

    Args:
        features: features `[B, D, h, w]`; no gradient flows into them.
        masks: masks `[B, L, H, W]` in [0, 1], of any size, covering the same area as the features.

    Returns:
        fp32 `[B, L, D]`; zeros for an empty mask.
    """
    batch, channels, rows, columns = features.shape
    if masks.shape[1] == 0:
        return features.new_zeros(batch, 0, channels, dtype=torch.float32)
    return means_inside(features.detach(), F.adaptive_avg_pool2d(masks.float(), (rows, columns)))


def _in_order(rows: Tensor, order: Tensor) -> Tensor:
    """Reorders the rows `[B, K, ...]` of each image by `order` `[B, K]`."""
    return rows.gather(1, order.view(*order.shape, *[1] * (rows.dim() - 2)).expand_as(rows))


def pad_rows(rows: list[Tensor], width: int) -> Tensor:
    """Stacks `[n_b, width]` tensors to `[B, max n_b, width]`, padded with zeros."""
    longest = max(one.shape[0] for one in rows)
    return torch.stack([F.pad(one.reshape(-1, width), (0, 0, 0, longest - one.shape[0])) for one in rows])


def _as_tensor(boxes: Any) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor
