"""Trains the detector of the scenes benchmarks and writes data/scenes/detector.{safetensors,json}; from the root.

Scenes of the train scans, turned, scaled and placed freely, blurred and noisy, so that it stays honest on images that
a generator made. About twenty minutes on one core; then put the printed hash
into rcm_core/evaluation/judges/detector.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rcm_core.evaluation.judges.detector import CELL, PLACE, Detector
from rcm_core.record import PACKAGES, version
from rcm_core.rng import address, generator
from rcm_core.scenes.compose import JITTER, OBJECT, PALETTE, QUADRANT, SIZE
from rcm_core.scenes.scans import scans
from rcm_core.storage.files import sha256, write_json

BATCH, PEAK_LR, SMOOTHING = 64, 3e-3, 0.03
MOST = 4
NEAR = 4.0
"""Pixels from an object's centre within which a cell detects it."""


def uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def centres(batch: int, rng: torch.Generator) -> Tensor:
    """Centres in pixels, ``[B, 4, 2]``: half the scenes by quadrants, half anywhere; objects may touch there."""
    quadrants = torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)]) * QUADRANT + OBJECT / 2
    order = torch.rand((batch, MOST), generator=rng).argsort(1)
    placed = quadrants[order] + uniform((batch, MOST, 2), -1, JITTER + 1, rng)
    free = uniform((batch, MOST, 2), OBJECT / 2 - 1, SIZE - OBJECT / 2 + 1, rng)
    return torch.where(torch.rand((batch, 1, 1), generator=rng) < 0.5, placed, free)


def draw_shown(where: Tensor, rng: torch.Generator) -> Tensor:
    """Which of the objects are drawn, bool ``[B, 4]``: up to four, none upon another one."""
    count = torch.randint(0, MOST + 1, (len(where), 1), generator=rng)
    keep = torch.arange(MOST) < count
    for i in range(1, MOST):
        gap = (where[:, i : i + 1] - where[:, :i]).abs().amax(-1)
        keep[:, i] &= ~((gap < OBJECT - 1.5) & keep[:, :i]).any(1)
    return keep


def ink(digits: Tensor, where: Tensor, rng: torch.Generator) -> Tensor:
    """Scans ``[M, 8, 8]`` in [0, 1] drawn at ``where`` [M, 2], turned, sheared and scaled a little: ``[M, 32, 32]``."""
    many = len(digits)
    turn, shear = uniform((many,), -0.15, 0.15, rng), uniform((many,), -0.12, 0.12, rng)
    scale = uniform((many, 1, 1), 0.9, 1.12, rng) * OBJECT / 2
    rows = torch.stack((turn.cos(), shear - turn.sin(), turn.sin(), turn.cos()), 1).view(many, 2, 2)
    pixel = torch.arange(SIZE) + 0.5
    grid = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), -1).view(1, -1, 2)
    inside = ((grid - where[:, None]) / scale) @ rows.transpose(1, 2)
    values = F.grid_sample(
        digits[:, None], inside[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return (values.view(many, -1) * (inside.abs().amax(-1) <= 1)).view(many, SIZE, SIZE)


def spoil(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Make images paler, blurred and noisy, like a sampler's errors."""
    batch = len(frames)
    frames = (frames + 1) * uniform((batch, 1, 1, 1), 0.75, 1.05, rng) - 1
    blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    frames = torch.lerp(frames, blurred, uniform((batch, 1, 1, 1), -0.2, 0.6, rng))
    noise = torch.randn(frames.shape, generator=rng)
    return (frames + uniform((batch, 1, 1, 1), 0, 0.25, rng) * noise).clamp(-1, 1)


def scenes(pixels: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames ``[B, 3, 32, 32]`` and of every object slot what it is: shown, digit, colour, centre."""
    rows = torch.randint(len(pixels), (BATCH, MOST), generator=rng)
    colours = torch.randint(len(PALETTE), (BATCH, MOST), generator=rng)
    where = centres(BATCH, rng)
    keep = draw_shown(where, rng)
    drawn = ink(pixels[rows.flatten()], where.flatten(0, 1), rng).view(BATCH, MOST, 1, SIZE, SIZE)
    tint = (PALETTE[colours] + uniform((BATCH, MOST, 3), -0.08, 0.08, rng)).clamp(0, 1)
    layers = drawn * tint[..., None, None] * keep[..., None, None, None]
    frames = 2 * layers.amax(1) - 1
    return spoil(frames, rng), {"shown": keep, "digit": labels[rows], "colour": colours, "centre": where}


def loss_of(outputs: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Cells at a centre are objects, cells near one are not asked; all of them name the digit that is near."""
    across = SIZE // CELL
    middle = (torch.arange(across) + 0.5) * CELL
    cells = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).view(1, 1, -1, 2)
    gap = (truth["centre"][:, :, None] - cells).abs().amax(-1)
    gap = gap.masked_fill(~truth["shown"][..., None], torch.inf)
    nearest, slot = gap.min(1)
    near, at = nearest < NEAR, nearest <= CELL / 2
    asked = at | ~near
    loss = F.binary_cross_entropy_with_logits(outputs["object"].flatten(1)[asked], at[asked].float())
    for head in ("digit", "colour"):
        wanted = truth[head].gather(1, slot)[near]
        given = outputs[head].flatten(2).transpose(1, 2)[near]
        loss = loss + F.cross_entropy(given, wanted, label_smoothing=SMOOTHING)
    centre = truth["centre"].gather(1, slot[..., None].expand(-1, -1, 2))
    offset = ((centre - cells[:, 0]) / CELL)[near]
    return loss + F.smooth_l1_loss(outputs["offset"].flatten(2).transpose(1, 2)[near], offset)


def train(steps: int) -> tuple[Detector, float]:
    """Return the detector after ``steps`` steps and the mean loss of the last 100."""
    torch.manual_seed(address("detector"))
    detector = Detector()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=PEAK_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, total_steps=steps)
    pixels, labels = scans("train")
    pixels, losses = (pixels + 1) / 2, []
    for step in range(steps):
        frames, truth = scenes(pixels, labels, generator("detector", step))
        loss = loss_of(detector(frames)[1], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}/{steps}  loss {sum(losses[-200:]) / 200:.4f}", flush=True)
    return detector.eval(), sum(losses[-100:]) / len(losses[-100:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    started = time.perf_counter()
    detector, loss = train(steps)
    path = Path(PLACE)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(detector.state_dict(), path)
    record = {
        "made_by": "scripts/data/train_detector.py", "steps": steps, "batch": BATCH, "peak_lr": PEAK_LR,
        "loss": round(loss, 4), "seconds": round(time.perf_counter() - started), "sha256": sha256(path),
        "versions": {name: version(name) for name in PACKAGES if name != "ray"},
    }  # fmt: skip
    write_json(path.with_suffix(".json"), record)
    print(f"DIGEST = {record['sha256']!r}")


if __name__ == "__main__":
    main()
