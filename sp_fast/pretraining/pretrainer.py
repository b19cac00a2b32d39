"""Saliency-prompt pre-training (Eq. 10) of a query-based instance segmenter."""

from __future__ import annotations

import warnings
from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from torch import Tensor

from sp_fast.pretraining.adapters import adapter_for
from sp_fast.pretraining.kernel_supervision import KernelSupervision, matched_kernels
from sp_fast.pretraining.prompts import PromptGenerator, PromptInjector
from sp_fast.pretraining.sources import AnnotatedSource, SharedSource, TeacherSource

SOURCES = ("cached", "shared", "teacher", "import")
IN_STEP = ("shared", "teacher")

# `paper`: the text. `official`: what the authors' released code does. Of the proposals too, where they are
# made within the step.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": dict(
        frozen_stages=None,
        prompts=dict(levels=-1, detach=False, strategy="cosine", drop_rate=0.0, inject="init"),
    ),
    "official": dict(
        frozen_stages=4,
        prompts=dict(levels="P5", detach=True, strategy="cosine", drop_rate=0.1, inject="proposal"),
    ),
}


@MODELS.register_module()
class SaliencyPromptPretrainer(BaseDetector):
    """Trains `detector` on saliency mask proposals, with prompts in its kernels.

    Eq. 10: the base model's class, dice and mask losses with the proposals for targets, plus the kernel
    loss of Eq. 9. The data flow of a step: images -> features -> proposals -> prompts -> decorated kernels
    -> stages -> losses.

    Args:
        detector: config of the base model, with one class.
        preset: `paper` or `official`: the defaults of `frozen_stages`, `prompts` and `proposer`.
        source: `cached`: masks and seeds of `sp-fast propose`, read with the images; `shared`: made in the
            step from the backbone's last stage, meant for a frozen one; `teacher`: the same from a frozen
            copy of the backbone beside it; `import`: anybody's COCO-format masks, seeds then being the mean
            features inside each.
        proposer: for `shared` and `teacher`, options of :class:`sp_fast.proposals.SaliencyProposer`.
        prompts: options of :class:`sp_fast.pretraining.prompts.PromptGenerator` (`levels`, `detach`) and of
            :class:`sp_fast.pretraining.prompts.PromptInjector` (`strategy`, `drop_rate`), and `inject`:
            `init` decorates K^0 before the first masks, `proposal` the kernels after the first head (see the
            family's adapter).
        supervision: `seed_channels`, `loss_weight`, `reduction`, `center` (see
            :class:`sp_fast.pretraining.kernel_supervision.KernelSupervision`), or None for no kernel loss.
            Both presets take the mean over pairs, as the authors' code does: the sum of Eq. 9 grows with
            batch and proposals, while its weight in Eq. 10 is 1.
        frozen_stages: stages of the backbone, from the stem on, that are not trained; None: as `detector`
            says, or all of them with `official`. (-1 freezes none of a ResNet's, 0 none of a MobileNetV2's.)
    """

    def __init__(
        self,
        detector: dict,
        *,
        preset: str = "paper",
        source: str = "cached",
        proposer: dict | None = None,
        prompts: dict | None = None,
        supervision: dict | None = None,
        frozen_stages: int | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        defaults = PRESETS[preset]
        detector = dict(detector)
        if frozen_stages is None:
            frozen_stages = defaults["frozen_stages"]
        if frozen_stages is not None:
            if "backbone" not in detector:
                raise ValueError(
                    f"frozen_stages: expected a detector config with a backbone, got {detector.get('type')} "
                    f"with {', '.join(detector)}; set frozen_stages=None and preset='paper'"
                )
            detector["backbone"] = dict(detector["backbone"], frozen_stages=frozen_stages)
        inner_preprocessor = detector.pop("data_preprocessor", None)
        super().__init__(data_preprocessor=data_preprocessor or inner_preprocessor, init_cfg=init_cfg)
        self.detector = MODELS.build(detector)
        self._adapter = adapter_for(self.detector)
        if source not in SOURCES:
            raise ValueError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
        if proposer is not None and source not in IN_STEP:
            raise ValueError(
                f"proposer: has a use only with source='shared' or 'teacher', got source={source!r}"
            )
        proposer = {"preset": preset, **(proposer or {})}
        self.source: AnnotatedSource | SharedSource
        if source == "shared":
            self.source = SharedSource(proposer)
            if any(one.requires_grad for one in self.detector.backbone.parameters()):
                warnings.warn(
                    "source='shared': the backbone is trained, so the proposals drift with it; set "
                    "frozen_stages to all of its stages (4), or source='teacher' for a frozen copy",
                    stacklevel=2,
                )
        elif source == "teacher":
            self.source = TeacherSource(self.detector.backbone, proposer)
        else:
            self.source = AnnotatedSource(stored_seeds=source == "cached")
        options = {**defaults["prompts"], **(prompts or {})}
        self.inject = options.pop("inject")
        if self.inject not in self._adapter.injection_points:
            known = ", ".join(self._adapter.injection_points)
            raise ValueError(f"prompts.inject: expected one of {known}, got {self.inject!r}")
        self.injector = PromptInjector(options.pop("strategy"), drop_rate=options.pop("drop_rate"))
        self.generator = PromptGenerator(**options)
        self.supervision = (
            KernelSupervision(kernel_channels=self._adapter.kernel_channels, **supervision)
            if supervision
            else None
        )

    def init_weights(self) -> None:
        """Initialises the base model, and the teacher with its backbone."""
        super().init_weights()
        self.backbone_loaded()

    def backbone_loaded(self) -> None:
        """Gives the teacher, where there is one, the weights that the backbone has now."""
        if isinstance(self.source, TeacherSource):
            self.source.copy_from(self.detector.backbone)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """The terms of Eq. 10 by name, `loss_kernel` among them.

        Args:
            batch_inputs: `[B, 3, H, W]`, normalised and padded.
            batch_data_samples: B data samples; with instances unless the source makes its own.
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
        """Weights for the plain base model: no prompts, linear layer, teacher nor binary class head."""
        state = {name: value.detach().cpu() for name, value in self.detector.state_dict().items()}
        return self._adapter.transferable(state)
