"""Where a step's proposals come from: read with the images, made of the student's features or a teacher's."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.models.adapters import Adapter
from sp_fast.models.targets import TARGET_STRIDE, Targets, padded_masks
from sp_fast.proposals import SaliencyProposer


class StepProposals(NamedTuple):
    """The proposals of one batch, padded to the largest count.

    Attributes:
        targets: the adapter's targets, for the base model's losses.
        boxes: `[B, L, 4]`, tight x0 y0 x1 y1 in pixels of the padded input.
        seeds: `[B, L, D]`.
        count: int64 `[B]`.
    """

    targets: Any
    boxes: Tensor
    seeds: Tensor
    count: Tensor


class AnnotatedSource(nn.Module):
    """Proposals that come with the images, as instances of the data samples.

    Args:
        stored_seeds: `True` for the seeds that `sp-fast propose` stored (source `cached`); `False` where
            there are none and the mean features inside each mask serve (source `import`).
    """

    def __init__(self, *, stored_seeds: bool) -> None:
        super().__init__()
        self.stored_seeds = stored_seeds

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Pads boxes and seeds; see :class:`StepProposals`."""
        size = (images.shape[-2], images.shape[-1])
        targets = adapter.targets(data_samples, size)
        instances = [sample.gt_instances for sample in data_samples]
        boxes = pad_rows([_as_tensor(one.bboxes).to(images) for one in instances], 4)
        padded = isinstance(targets, Targets)
        counts = [len(one.labels) for one in instances]
        count = targets.count if padded else torch.tensor(counts, device=images.device)
        if not self.stored_seeds:
            masks = targets.masks if padded else padded_masks(data_samples, size, images.device)
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
    """Proposals made within the step from the student's own last-stage features (Eq. 3-4).

    Meant for a frozen backbone: it computes these features anyway.

    Padding takes part in no proposal, but the backbone has seen it: within its receptive field of a padded
    border the features differ from those of the image alone, and so may masks there.

    Args:
        proposer: options of :class:`sp_fast.proposals.SaliencyProposer`.
        target_stride: stride of the base model's mask targets.
    """

    def __init__(self, proposer: dict | None = None, *, target_stride: int = TARGET_STRIDE) -> None:
        super().__init__()
        self.proposer = SaliencyProposer(**(proposer or {}))
        self.target_stride = target_stride

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Proposals of the valid part of each image; see :class:`StepProposals`."""
        height, width = images.shape[-2:]
        rows, columns = features.shape[-2:]
        size = torch.tensor([sample.img_shape[:2] for sample in data_samples])  # [B, 2]
        cells = torch.tensor([rows, columns])
        valid = (
            (size * cells / torch.tensor([height, width]))
            .ceil()
            .int()
            .minimum(cells.int())
            .to(features.device)
        )
        found = self.proposer.from_features(features.detach(), valid)
        masks = F.interpolate(
            found.masks.unpack().to(features.dtype),
            size=(height // self.target_stride, width // self.target_stride),
            mode="bilinear",
            align_corners=False,
        )
        scale = features.new_tensor([width / columns, height / rows, width / columns, height / rows])
        boxes = found.masks.boxes().to(features.dtype) * scale
        targets = adapter.targets_from_masks(masks, boxes, found.count, data_samples)
        return StepProposals(targets, boxes, found.seeds, found.count)


class TeacherSource(SharedSource):
    """Proposals made within the step by a frozen copy of the backbone, which runs beside the student.

    The copy stays as the student's backbone was at the start, in eval mode; it is not exported.

    Args:
        backbone: the student's.
        proposer: options of :class:`sp_fast.proposals.SaliencyProposer`.
        target_stride: stride of the base model's mask targets.
    """

    def __init__(
        self, backbone: nn.Module, proposer: dict | None = None, *, target_stride: int = TARGET_STRIDE
    ) -> None:
        super().__init__(proposer, target_stride=target_stride)
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.backbone.eval()  # apart: mmdet's gives None back

    def copy_from(self, backbone: nn.Module) -> None:
        """Takes over the weights of the student's backbone."""
        self.backbone.load_state_dict(backbone.state_dict())

    def train(self, mode: bool = True) -> TeacherSource:
        """Keeps the copy in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self, adapter: Adapter, images: Tensor, features: Tensor, data_samples: list
    ) -> StepProposals:
        """Proposals from the copy's last stage, not from `features`; see :class:`StepProposals`."""
        with torch.no_grad():
            features = self.backbone(images)[-1]
        return super().forward(adapter, images, features, data_samples)


def mean_inside(features: Tensor, masks: Tensor) -> Tensor:
    """The mean feature inside each mask.

    Args:
        features: `[B, D, h, w]`; no gradient flows into them.
        masks: `[B, L, H, W]` in [0, 1], of any size over the same area.

    Returns:
        `[B, L, D]`; zeros for an empty mask.
    """
    batch, channels, rows, columns = features.shape
    if masks.shape[1] == 0:
        return features.new_zeros(batch, 0, channels)
    weight = F.adaptive_avg_pool2d(masks.to(features.dtype), (rows, columns)).flatten(2)  # [B, L, h w]
    total = weight @ features.detach().flatten(2).transpose(1, 2)  # [B, L, D]
    return total / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


def pad_rows(rows: list[Tensor], width: int) -> Tensor:
    """Stacks `[n_b, width]` tensors to `[B, max n_b, width]`, padded with zeros."""
    longest = max(one.shape[0] for one in rows)
    return torch.stack([F.pad(one.reshape(-1, width), (0, 0, 0, longest - one.shape[0])) for one in rows])


def _as_tensor(boxes: Any) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor
