"""Muon for matrices and AdamW for everything else, as one optimizer.

Muon replaces a matrix's momentum by the nearest orthogonal matrix (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). That is defined for matrices only, so ``torch.optim``'s
Muon takes only those; convolution kernels and vectors are left to AdamW, as its authors advise.
With ``adjust_lr_fn="match_rms_adamw"`` (Liu et al. 2025, arXiv:2502.16982) a step of Muon is as
long as one of AdamW, so that one learning rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import require


class MuonAndAdamW(torch.optim.Optimizer):
    """The two share this optimizer's groups and state: schedules, scalers and files see only it.

    Args:
        params: groups; each is divided into its matrices and the rest.
        lr, weight_decay: of both; the other arguments are those of Muon.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        require(
            hasattr(torch.optim, "Muon"),
            f"optimizer_type Muon needs torch 2.9 or newer; this ComfyUI has {torch.__version__}. "
            "Update ComfyUI, or choose AdamW.",
        )
        groups = [part for group in params for part in _divided(group)]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if matrices := self._groups(True):
            muon = torch.optim.Muon(
                matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_coefficients=ns_coefficients,
                eps=eps,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
            )
            self._parts.append((True, muon))
        if others := self._groups(False):
            adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay)
            self._parts.append((False, adamw))
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None if closure is None else closure()
        for _, part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()

    def _groups(self, matrices: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["matrices"] is matrices]

    def _share(self) -> None:
        for matrices, part in self._parts:
            part.param_groups = self._groups(matrices)
            part.state = self.state


def _divided(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The matrices of a group, and the rest of it; neither when it would be empty."""
    parts = [
        {**group, "params": [p for p in group["params"] if (p.ndim == 2) is matrices]}
        | {"matrices": matrices}
        for matrices in (True, False)
    ]
    return [part for part in parts if part["params"]]
