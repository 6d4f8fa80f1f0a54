"""Distillation from a teacher's cached logits (Hinton et al., 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss


@dataclass(frozen=True)
class Distillation(Loss):
    r"""Match a teacher whose logits (or probabilities) are a dataset column.

    $$\ell_i = T^2\, \mathrm{KL}\big(\mathrm{softmax}(t_i/T)\,\|\,\mathrm{softmax}(z_i/T)\big)
      \quad\text{or}\quad \ell_i = \tfrac1C \sum_c (z_{ic}-t_{ic})^2$$

    Args:
        column: the teacher's `[N, C]`, in the student's class order. A row of `None` or NaN means
            the teacher abstains there.
        temperature: $T$ > 0; the factor $T^2$ keeps gradients of the same size across $T$.
        kind: "kl", or "mse" on logits.
        probabilities: the column holds probabilities; their logarithm is taken as logits.

    Returns:
        `[N]`, in nats ("kl") or squared logits ("mse"); 0 where the teacher abstains.

    Raises:
        ValueError: `temperature` not positive, unknown `kind`, or "mse" on probabilities.

    Example:
        >>> batch = {"teacher_logits": torch.tensor([[2.0, 0.0]])}
        >>> Distillation(temperature=4.0)(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1]
        tensor([0.4848])

    References:
        Hinton, Vinyals, Dean (2015), equation 2 and section 2.1 (MSE as the high-temperature limit).
    """

    column: str = "teacher_logits"
    temperature: float = 4.0
    kind: Literal["kl", "mse"] = "kl"
    probabilities: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"`temperature`: expected a positive number, found {self.temperature}.")
        if self.kind not in ("kl", "mse"):
            raise ValueError(f"`kind`: expected 'kl' or 'mse', found {self.kind!r}.")
        if self.kind == "mse" and self.probabilities:
            raise ValueError("`kind`: 'mse' compares logits, but `probabilities=True`. Use kind='kl'.")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        return ~batch[self.column].isnan().any(-1)

    def _teacher(self, batch: Batch) -> Tensor:
        teacher = torch.nan_to_num(batch[self.column], posinf=None, neginf=None)
        return teacher.clamp_min(1e-12).log() if self.probabilities else teacher

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        teacher, student, t = self._teacher(batch).to(outputs.logits.dtype), outputs.logits, self.temperature
        if self.kind == "mse":
            rows = (student - teacher).square().mean(-1)
        else:
            log_p, log_q = F.log_softmax(teacher / t, -1), F.log_softmax(student / t, -1)
            p = log_p.exp()  # 0 where the teacher rules a class out: 0 · log 0 = 0
            rows = t * t * (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)
        return torch.where(self.mask(batch), rows, 0.0)

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        return self._teacher(batch).softmax(-1) * self.mask(batch)[:, None]
