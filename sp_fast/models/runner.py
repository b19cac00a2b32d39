"""mmengine's Runner, whose weights come from checked files before training begins."""

from __future__ import annotations

from typing import Any

from mmengine import runner as mmengine_runner

from sp_fast.models.adapters import adapter_for
from sp_fast.models.checkpoint import install_safe_resume, load_weights
from sp_fast.models.hooks import unwrapped
from sp_fast.models.pretrainer import SaliencyPromptPretrainer
from sp_fast.proposals.weights import load_backbone_weights


class Runner(mmengine_runner.Runner):
    """Initialises once, then loads files that must fit; its checkpoints hold no code."""

    _initialised = False

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """See mmengine."""
        install_safe_resume()
        return super().from_cfg(cfg)

    def initialise(
        self, *, weights: str | None = None, allow_partial: bool = False, load_from: str | None = None
    ) -> None:
        """The model's own initialisation, then the backbone's weights, then those of the whole model.

        Args:
            weights: published weights for the backbone, in any layout that
                :func:`sp_fast.proposals.weights.load_backbone_weights` reads.
            allow_partial: keep the initial value of what `weights` lacks, and say what that is.
            load_from: a checkpoint of the model, or of its pre-training; class heads may differ.

        Raises:
            ValueError: a file that is no weights file, or whose keys or shapes do not fit; lists them.
        """
        super()._init_model_weights()
        self._initialised = True
        model = unwrapped(self.model)
        detector = getattr(model, "detector", model)
        if weights:
            report = load_backbone_weights(detector.backbone, weights, allow_partial=allow_partial)
            self.logger.info(f"backbone weights from {weights}: {report}")
        if load_from:
            whole = isinstance(model, SaliencyPromptPretrainer)
            heads = () if whole else adapter_for(model).class_heads
            report = load_weights(model, load_from, allow=heads)
            self.logger.info(f"weights from {load_from}: {report}")

    def _init_model_weights(self) -> None:
        if not self._initialised:
            super()._init_model_weights()
