"""Muon: orthogonalised momentum updates the matrices of a network's blocks, AdamW everything else.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with its Newton-Schulz
iteration; scaled as by Liu et al., arXiv 2502.16982, section 2.2, so that both parts share a learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from rcm_core.errors import InputError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
SCALE = 0.4
"""RMS of a matrix's update at a learning rate of 1; twice the paper's."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Orthogonalise ``[K, R, C]``: singular values become about 1 (0.7 to 1.2), singular vectors stay.

    Runs in bfloat16, which is exact enough for a direction and takes less than half the time.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Optimiser of ``network``: Muon for the matrices of its ``blocks`` (a ModuleList), AdamW for the rest.

    InputError if matrices are sharded: orthogonalisation needs whole matrices.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
    ) -> None:
        named = dict(network.named_parameters())
        inner = {name for name, p in named.items() if ".blocks." in f".{name}" and p.ndim == 2}
        if any(isinstance(named[name], DTensor) for name in inner):
            raise InputError(
                "optimiser muon needs whole matrices, but these are sharded; set workers to 1 or the optimiser to adamw"
            )
        groups = [
            {"params": [named[name] for name in named if (name in inner) == matrix], "matrix": matrix}
            for matrix in (True, False)
        ]
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon.step got a closure, which it cannot evaluate; call backward before step")
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if group["matrix"]:
                self._orthogonal(moved, group)
            elif moved:
                self._adamw(moved, group)

    def _orthogonal(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in moved:
            by_shape[p.shape].append(p)
        for shape, matrices in by_shape.items():
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in matrices]
            gradients = [p.grad for p in matrices if p.grad is not None]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch.lerp(torch.stack(gradients), torch.stack(momenta), MOMENTUM)
            updates = orthogonalise(ahead) * (SCALE * max(shape) ** 0.5)
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"])

    def _adamw(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        for p in moved:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)
                }  # fmt: skip
        states = [self.state[p] for p in moved]
        adamw(
            moved, [p.grad for p in moved if p.grad is not None], [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states], fused=True, amsgrad=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
