"""The device that a stage computes on."""

from __future__ import annotations

import torch

from rcm_core.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Return the device. ``auto`` is the GPU if torch sees one, else the CPU; InputError if ``cuda`` is absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown; expected auto, cpu or cuda")
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise InputError(
            f"device cuda was asked for, but torch {torch.__version__} sees no GPU here; "
            "set device: auto or cpu, or install a CUDA build of torch on a machine with a GPU (`rcm doctor`)"
        )
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def refuse_precision(precision: str, device: torch.device) -> None:
    """InputError if ``device`` cannot compute in ``precision``."""
    if precision != "bfloat16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"precision bfloat16 was asked for, but {torch.cuda.get_device_name(device)} does not support it; set"
            " teacher.precision and train.parallel.precision to float32, or use an Ampere GPU or later"
        )
