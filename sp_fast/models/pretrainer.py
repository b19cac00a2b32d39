"""Saliency-prompt pre-training (Eq. 10) of a query-based instance segmenter."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from torch import Tensor

from sp_fast.models.adapters import adapter_for
from sp_fast.models.sources import AnnotatedSource, SharedSource
from sp_fast.prompts import KernelSupervision, PromptGenerator, PromptInjector, matched_kernels

SOURCES = ("cached", "shared", "import")


@MODELS.register_module()
class SaliencyPromptPretrainer(BaseDetector):
    """Trains `detector` on saliency mask proposals, with prompts in its kernels.

    Eq. 10: the base model's class, dice and mask losses with the proposals for targets, plus the kernel
    loss of Eq. 9. The data flow of a step: images -> features -> proposals -> prompts -> decorated kernels
    -> stages -> losses.

    Args:
        detector: config of the base model, with one class.
        source: `cached`: masks and seeds of `sp-fast propose`, read with the images; `shared`: made in the
            step from the backbone's last stage; `import`: anybody's COCO-format masks, seeds then being
            the mean features inside each.
        proposer: for `shared`, options of :class:`sp_fast.proposals.SaliencyProposer`.
        prompts: `levels`, `detach` (see :class:`sp_fast.prompts.PromptGenerator`), `strategy`, `drop_rate`
            (see :class:`sp_fast.prompts.PromptInjector`) and `inject`: `init` decorates K^0 before the first
            masks, `proposal` the kernels after the first head.
        supervision: `seed_channels`, `loss_weight`, `reduction` (see
            :class:`sp_fast.prompts.KernelSupervision`), or None for no kernel loss.
    """

    def __init__(
        self,
        detector: dict,
        *,
        source: str = "cached",
        proposer: dict | None = None,
        prompts: dict | None = None,
        supervision: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        detector = dict(detector)
        inner_preprocessor = detector.pop("data_preprocessor", None)
        super().__init__(data_preprocessor=data_preprocessor or inner_preprocessor, init_cfg=init_cfg)
        self.detector = MODELS.build(detector)
        self._adapter = adapter_for(self.detector)
        if source not in SOURCES:
            raise ValueError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
        if proposer is not None and source != "shared":
            raise ValueError(f"proposer: has a use only with source='shared', got source={source!r}")
        self.source = (
            SharedSource(proposer) if source == "shared" else AnnotatedSource(stored_seeds=source == "cached")
        )
        options = dict(prompts or {})
        self.inject = options.pop("inject", "init")
        if self.inject not in self._adapter.injection_points:
            known = ", ".join(self._adapter.injection_points)
            raise ValueError(f"prompts.inject: expected one of {known}, got {self.inject!r}")
        self.injector = PromptInjector(
            options.pop("strategy", "cosine"), drop_rate=options.pop("drop_rate", 0.0)
        )
        self.generator = PromptGenerator(**options)
        self.supervision = (
            KernelSupervision(kernel_channels=self._adapter.kernel_channels, **supervision)
            if supervision
            else None
        )

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """The terms of Eq. 10 by name, `loss_kernel` among them.

        Args:
            batch_inputs: `[B, 3, H, W]`, normalised and padded.
            batch_data_samples: B data samples; with instances unless the source is `shared`.
        """
        backbone_features, pyramid = self._adapter.features(batch_inputs)
        proposals = self.source(self._adapter, batch_inputs, backbone_features[-1], batch_data_samples)
        image_size = (batch_inputs.shape[-2], batch_inputs.shape[-1])
        prompts = self.generator(pyramid, proposals.boxes, proposals.count, image_size)  # [B, L, C]

        def decorate(kernels: Tensor) -> Tensor:
            return self.injector(kernels, prompts, proposals.count)[0]

        losses, kernels, assigned = self._adapter.loss(pyramid, proposals.targets, decorate, self.inject)
        if self.supervision is not None:
            index = matched_kernels(assigned, proposals.boxes.shape[1])
            losses["loss_kernel"] = self.supervision(kernels, proposals.seeds, index)
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        """What the base model predicts without prompts, as it will run after pre-training."""
        return self.detector.predict(batch_inputs, batch_data_samples, rescale=rescale)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list | None = None) -> Any:
        return self.detector._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The feature pyramid of the base model."""
        return self._adapter.features(batch_inputs)[1]

    def export(self) -> dict[str, Tensor]:
        """Weights for the plain base model: no prompts, no linear layer, no binary class head."""
        state = {name: value.detach().cpu() for name, value in self.detector.state_dict().items()}
        return self._adapter.transferable(state)
