"""In which precision the study's models run."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 where the device multiplies it faster than fp32, else fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a GPU, or a processor with bf16 instructions."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True
