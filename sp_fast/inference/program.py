"""Predicting with programs of `torch.export`, without mmdet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torchvision  # noqa: F401  (registers RoI align, which exported models may call)

from sp_fast.inference.instances import Instances
from sp_fast.inference.model import Model, UnfitImageError

ABOUT = "sp_fast.json"


class ProgramModel(Model):
    """A model that `sp-fast export --format pt2` wrote.

    Args:
        path: the file.
        device: where it runs.

    Raises:
        ValueError: not such a file.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        about = {ABOUT: ""}
        try:
            program = torch.export.load(path, extra_files=about)
        except Exception as error:  # torch.export raises almost any type on files of other kinds
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: torch.export cannot load it ({reason})") from error
        if not about[ABOUT]:
            raise ValueError(f"{path}: expected a file that `sp-fast export` wrote, got one without {ABOUT}")
        self.device = torch.device(device)
        if self.device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, self.device)
        self._module = program.module()
        super().__init__(tuple(json.loads(about[ABOUT])["classes"]))

    @torch.inference_mode()
    def _infer(self, images: list[np.ndarray]) -> list[Instances]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Instances:
        pixels = torch.from_numpy(np.ascontiguousarray(image))[None].to(self.device)
        try:
            scores, labels, _, masks = (output[0].cpu().numpy() for output in self._module(pixels))
        except RuntimeError as error:  # a side of less than one pixel when resized, or too little memory
            raise UnfitImageError(image.shape, error) from error
        return Instances.from_masks(masks, scores, labels, self.classes)
