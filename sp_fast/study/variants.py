"""The ways of pre-training that the study compares: each is a set of options of the pre-trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SALIENCY = "paper"
OFFICIAL = "official"
RANDOM_BOXES = "random"


@dataclass(frozen=True)
class Variant:
    """One way of pre-training.

    Attributes:
        title: what it is, for tables.
        proposals: pseudo labels: a preset of the proposals, `random` for boxes, or None for no pre-training.
        prompts: options of :class:`sp_fast.pretraining.pretrainer.SaliencyPromptPretrainer`.
        supervision: options of :class:`sp_fast.pretraining.kernel_supervision.KernelSupervision`, or None.
    """

    title: str
    proposals: str | None = SALIENCY
    prompts: Mapping[str, Any] = field(default_factory=dict)
    supervision: Mapping[str, Any] | None = field(default_factory=dict)


def _prompts(strategy: str, **options: Any) -> dict[str, Any]:
    return {
        **dict(levels=(-1,), detach=False, drop_rate=0.0, inject="init"),
        **options,
        "strategy": strategy,
    }


VARIANTS = {
    "none": Variant("no pre-training", proposals=None),
    "labels": Variant("pseudo labels, no prompts", prompts=_prompts("none"), supervision=None),
    "random": Variant("prompts at random", prompts=_prompts("random")),
    "sequential": Variant("prompts in sequence", prompts=_prompts("sequential")),
    "cosine": Variant("prompts by cosine", prompts=_prompts("cosine")),
    "cosine-no-kernel-loss": Variant("cosine, no kernel loss", prompts=_prompts("cosine"), supervision=None),
    "cosine-centered": Variant(
        "cosine, centered loss", prompts=_prompts("cosine"), supervision=dict(center=True)
    ),
    "cosine-after-head": Variant("cosine after first head", prompts=_prompts("cosine", inject="proposal")),
    "cosine-p2": Variant("cosine, prompts from P2", prompts=_prompts("cosine", levels=("P2",))),
    "boxes": Variant(
        "random boxes, no prompts", proposals=RANDOM_BOXES, prompts=_prompts("none"), supervision=None
    ),
    "boxes-cosine": Variant("random boxes, cosine", proposals=RANDOM_BOXES, prompts=_prompts("cosine")),
    "official": Variant(
        "the official preset",
        proposals=OFFICIAL,
        prompts=_prompts("cosine", detach=True, drop_rate=0.1, inject="proposal"),
    ),
}


# Of two variants, the first against the second: what the paper says, or why they are compared.
EXPECTED = (
    ("cosine", "none", "pre-training beats none"),
    ("cosine", "labels", "prompts beat pseudo labels alone, by 1.8 AP in the paper"),
    ("cosine-no-kernel-loss", "labels", "prompts alone do, without the kernel loss"),
    ("cosine", "sequential", "cosine beats sequential"),
    ("sequential", "random", "sequential beats random"),
    ("cosine", "random", "cosine beats random"),
    ("cosine", "cosine-no-kernel-loss", "the kernel loss adds 0.4 AP in the paper"),
    ("cosine-centered", "cosine", "less its trivial solution, the kernel loss adds more"),
    ("cosine-after-head", "cosine", "the released code decorates after the first head"),
    ("cosine-p2", "cosine", "P5 has few cells in small images; P2 is finer"),
    ("boxes", "none", "random boxes ruin a model without prompts"),
    ("boxes-cosine", "boxes", "but not one with prompts"),
    ("official", "cosine", "both presets work"),
)


def choose_variants(names: Sequence[str]) -> list[str]:
    """The named variants, each once, in the order of the table.

    Raises:
        ValueError: an unknown name, or none; lists the known ones.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        got = ", ".join(unknown) if unknown else "none"
        raise ValueError(f"--variants: expected some of {', '.join(VARIANTS)}, got {got}")
    return [name for name in VARIANTS if name in names]
