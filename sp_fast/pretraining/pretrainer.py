"""Saliency-prompt pre-training (Eq. 10) of a query-based instance segmenter."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from torch import Tensor

from sp_fast.pretraining.adapters import adapter_for
from sp_fast.pretraining.folding import FOLDS, ReceivedPrompts, folded, plain_state
from sp_fast.pretraining.kernel_supervision import KernelSupervision, matched_kernels
from sp_fast.pretraining.prompts import PromptGenerator, PromptInjector
from sp_fast.pretraining.sources import AnnotatedSource, SharedSource, TeacherSource

SOURCES = ("cached", "shared", "teacher", "import")
IN_STEP = ("shared", "teacher")

# `paper`: as in the text. `official`: as in the authors' released code. A preset also sets the defaults of
# proposals that are computed in the training step.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": dict(
        frozen_stages=None,
        prompts=dict(levels=-1, detach=False, strategy="cosine", drop_rate=0.0, inject="init", fold="none"),
    ),
    "official": dict(
        frozen_stages=4,
        prompts=dict(
            levels="P5", detach=True, strategy="cosine", drop_rate=0.1, inject="proposal", fold="none"
        ),
    ),
}


@MODELS.register_module()
class SaliencyPromptPretrainer(BaseDetector):
    """Pre-trains `detector` on saliency mask proposals, with prompts added to its kernels.

    The loss is Eq. 10: the base model's class, dice and mask losses with the proposals as targets, plus the
    kernel loss of Eq. 9. Data flow of a step: images -> features -> proposals -> prompts -> decorated
    kernels -> stages -> losses.

    Args:
        detector: config of the base model, with one class.
        preset: `paper` or `official`; sets the defaults of `frozen_stages`, `prompts` and `proposer`.
        source: where the proposals come from. `cached`: masks and seeds of `sp-fast propose`, loaded with the
            images; `shared`: computed in the step from the last stage of the backbone, which should be
            frozen; `teacher`: computed in the step by a frozen copy of the backbone; `import`: any masks in
            COCO format, with the mean feature inside each mask as its seed.
        proposer: options of `SaliencyProposer`, for `shared` and `teacher`.
        prompts: options of `PromptGenerator` (`levels`, `detach`) and `PromptInjector` (`strategy`,
            `drop_rate`), and `inject`: `init` decorates the initial kernels before the first masks,
            `proposal` the kernels after the first head or stage (see the family's adapter). `fold` says what
            is added to K^0 where the model runs without prompts, in `export` and `predict`: `mean`, the mean
            prompt over kernels, images and steps, or `kernel`, the mean of what each kernel received (see
            `ReceivedPrompts`), or `none`; not with `proposal`. Without prompts (`strategy="none"`) there is
            nothing to fold.
        supervision: options of `KernelSupervision` (`seed_channels`, `loss_weight`, `reduction`, `center`)
            or None for no kernel loss. Both presets use the mean over pairs, like the authors' code: the sum
            of Eq. 9 grows with the batch and the number of proposals, but its weight in Eq. 10 is 1.
        frozen_stages: last stage of the backbone that is not trained; the stem and the stages before it are
            not trained either. None keeps the setting of `detector`, or freezes all with `official`. -1
            freezes nothing in a ResNet, 0 nothing in a MobileNetV2.
        data_preprocessor: config of the data preprocessor; default: that of `detector`.
        init_cfg: config of the weight initialisation.
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
                f"proposer: expected only with source='shared' or 'teacher', got it with source={source!r}"
            )
        proposer = {"preset": preset, **(proposer or {})}
        self.source: AnnotatedSource | SharedSource
        if source == "shared":
            self.source = SharedSource(proposer)
            if any(one.requires_grad for one in self.detector.backbone.parameters()):
                warnings.warn(
                    "source='shared': the backbone is trained, so the proposals change with it; set "
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
        strategy = options.pop("strategy")
        self.received = self._received_prompts(options.pop("fold"), strategy)
        self.injector = PromptInjector(strategy, drop_rate=options.pop("drop_rate"))
        self.generator = PromptGenerator(**options)
        self.supervision = (
            KernelSupervision(kernel_channels=self._adapter.kernel_channels, **supervision)
            if supervision
            else None
        )

    def _received_prompts(self, fold: str, strategy: str) -> ReceivedPrompts | None:
        if fold not in FOLDS:
            raise ValueError(f"prompts.fold: expected one of {', '.join(FOLDS)}, got {fold!r}")
        if fold == "none" or strategy == "none":
            return None
        if self.inject != "init":
            raise ValueError(
                f"prompts.fold: expected 'none' with prompts.inject={self.inject!r}, got {fold!r}: only "
                "prompts that are added to K^0 can become part of it; set prompts.fold='none', or "
                "prompts.inject='init'"
            )
        if not self._adapter.initial_kernels:
            raise ValueError(
                f"prompts.fold: expected 'none' with {type(self.detector).__name__}, whose adapter does not "
                f"name its initial_kernels, got {fold!r}"
            )
        return ReceivedPrompts(fold, len(self._initial_kernels()), self._adapter.kernel_channels)

    def _initial_kernels(self) -> Tensor:
        return self.detector.get_parameter(self._adapter.initial_kernels)

    def init_weights(self) -> None:
        """Initialises the base model, and copies its backbone to the teacher."""
        super().init_weights()
        self.backbone_loaded()

    def backbone_loaded(self) -> None:
        """Copies the current weights of the backbone to the teacher, if there is one."""
        if isinstance(self.source, TeacherSource):
            self.source.copy_from(self.detector.backbone)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Computes the terms of Eq. 10 by name, including `loss_kernel`.

        Args:
            batch_inputs: normalised, padded images `[B, 3, H, W]`.
            batch_data_samples: B data samples, with instances unless the source computes its own.
        """
        backbone_features, pyramid = self._adapter.features(batch_inputs)
        proposals = self.source(self._adapter, batch_inputs, backbone_features[-1], batch_data_samples)
        image_size = (batch_inputs.shape[-2], batch_inputs.shape[-1])
        prompts = self.generator(pyramid, proposals.boxes, proposals.count, image_size)  # [B, L, C]
        added: list[Tensor] = []  # [B, N, C]

        def decorate(kernels: Tensor) -> Tensor:
            decorated = self.injector(kernels, prompts, proposals.count)[0]
            added.append(decorated.detach() - kernels.detach())
            return decorated

        losses, kernels, assigned = self._adapter.loss(pyramid, proposals.targets, decorate, self.inject)
        if self.received is not None and self.training:
            # Not in `decorate`, which activation checkpointing may call again in the backward pass.
            self.received.update(added[0])
        if self.supervision is not None:
            index = matched_kernels(assigned, proposals.boxes.shape[1])
            losses["loss_kernel"] = self.supervision(kernels, proposals.seeds, index)
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        """Predicts with the base model without prompts, the way it runs after pre-training."""
        with self._folded():
            return self.detector.predict(batch_inputs, batch_data_samples, rescale=rescale)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list | None = None) -> Any:
        with self._folded():
            return self.detector._forward(batch_inputs, batch_data_samples)

    @contextlib.contextmanager
    def _folded(self) -> Iterator[None]:
        """Within its block, K^0 of the base model is that of `export`."""
        if self.received is None:
            yield
            return
        kernels = self._initial_kernels()
        own = kernels.data
        kernels.data = folded(own, self.received.mean)
        try:
            yield
        finally:
            kernels.data = own

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature pyramid of the base model."""
        return self._adapter.features(batch_inputs)[1]

    def export(self) -> dict[str, Tensor]:
        """Returns weights for the plain base model, without linear layer, teacher and binary class head.

        With `prompts.fold`, K^0 contains the mean prompt.
        """
        return self._adapter.transferable(self._detector_state())

    def class_head(self) -> dict[str, Tensor]:
        """Returns the weights of the binary class head: what `export` leaves out of the base model."""
        state = self._detector_state()
        rest = self._adapter.transferable(state)
        return {name: value for name, value in state.items() if name not in rest}

    def _detector_state(self) -> dict[str, Tensor]:
        weights = plain_state(self.state_dict(), self._adapter.initial_kernels)
        return {name: value.detach().cpu() for name, value in weights.items()}
