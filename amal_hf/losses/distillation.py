"""Distillation from a teacher's cached logits (Hinton et al., 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from amal_hf import _checks
from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss, expected_tangent
from amal_hf.losses.divergences import DIVERGENCES

LEARNED = "learned"
TEMPERATURE = "temperature/"
"""Where a batch holds a learned temperature: this and the teacher's column."""


class TeacherLoss(Loss):
    """A loss against a teacher's column `[N, ...]`: the teacher abstains on rows with NaN, and where a mask says so."""

    column: str
    mask_column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, self.mask_column) if self.mask_column else (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        covered = ~batch[self.column].isnan().flatten(1).any(1)
        return covered & (batch[self.mask_column] == 1) if self.mask_column else covered


@dataclass(frozen=True)
class Distillation(TeacherLoss):
    r"""Match a teacher whose logits (or probabilities) are a dataset column.

    With $p = \mathrm{softmax}(t_i/T)$, $q = \mathrm{softmax}(z_i/T)$ and $m = (p+q)/2$:

    $$\ell_i = T^2\,\mathrm{KL}(p\,\|\,q) \;\text{("kl")}, \quad
      T^2\,\mathrm{KL}(q\,\|\,p) \;\text{("reverse_kl")}, \quad
      \tfrac{T^2}{2}\,[\mathrm{KL}(p\,\|\,m) + \mathrm{KL}(q\,\|\,m)] \;\text{("js")},$$

    $$\tfrac{T^2}{C}\textstyle\sum_c \mathrm{KL}\big(\mathrm{B}(\sigma(t_{ic}/T))\,\|\,\mathrm{B}(\sigma(z_{ic}/T))\big)
      \;\text{("sigmoid")}, \quad \tfrac1C \textstyle\sum_c (z_{ic}-t_{ic})^2 \;\text{("mse")}$$

    Args:
        column: the teacher's `[N, C]`, in the student's class order. A row of `None` or NaN means
            the teacher abstains there.
        temperature: $T$ > 0; the factor $T^2$ keeps gradients of the same size across $T$. "mse" has none. "learned":
            the lookahead that steers the weights moves it (`amal_hf.losses.Temperatures`).
        kind: "kl"; "reverse_kl" (a small student need not cover all the teacher does); "js" (bounded, so that one
            absurd row cannot outweigh the batch); "sigmoid" for multi-label; "mse" on logits, and for regression.
        probabilities: the column holds probabilities; their logarithm ("sigmoid": log-odds) is taken as logits.
        mask_column: a column of booleans `[N]`; where it is False the teacher abstains.

    Returns:
        `[N]`, in nats ("mse": squared logits); 0 where the teacher abstains.

    Raises:
        ValueError: `temperature` not positive, unknown `kind`, or "mse" on probabilities or to learn a temperature.

    Example:
        >>> batch = {"teacher_logits": torch.tensor([[2.0, 0.0]])}
        >>> Distillation(temperature=4.0)(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1]
        tensor([0.4848])
        >>> Distillation(kind="js", temperature=1.0)(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1]
        tensor([0.0895])

    References:
        Hinton, Vinyals, Dean (2015), equation 2 and section 2.1 (MSE as the high-temperature limit); Gu et al. (2024,
        arXiv 2306.08543), section 2.1 (reverse KL); Lin (1991), equation 4.1 (Jensen–Shannon).
    """

    column: str = "teacher_logits"
    temperature: float | Literal["learned"] = 4.0
    kind: Literal["kl", "reverse_kl", "js", "sigmoid", "mse"] = "kl"
    probabilities: bool = False
    mask_column: str = ""

    def __post_init__(self) -> None:
        if self.temperature != LEARNED:
            _checks.positive("temperature", self.temperature)
        _checks.one_of("kind", self.kind, DIVERGENCES)
        if self.kind == "mse" and self.probabilities:
            raise ValueError("`kind`: 'mse' compares logits, but `probabilities=True`. Use kind='kl'.")
        if self.kind == "mse" and self.temperature == LEARNED:
            raise ValueError("`temperature`: 'mse' has none to learn. Leave it out, or use kind='kl'.")

    def _teacher(self, batch: Batch) -> Tensor:
        teacher = torch.nan_to_num(batch[self.column], posinf=None, neginf=None)
        if not self.probabilities:
            return teacher
        return torch.logit(teacher, 1e-6) if self.kind == "sigmoid" else teacher.clamp_min(1e-12).log()

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        t: Any = self.temperature if self.kind != "mse" else 1.0
        t = batch[TEMPERATURE + self.column] if t == LEARNED else t
        teacher = self._teacher(batch).to(outputs.logits.dtype)
        rows = t * t * DIVERGENCES[self.kind](teacher / t, outputs.logits / t)
        return torch.where(self.mask(batch), rows, 0.0)

    def target(self, batch: Batch, num_classes: int) -> Tensor | None:
        if self.kind == "sigmoid" or num_classes == 1:
            return None  # no class competes with another: there is no distribution over them
        return self._teacher(batch).softmax(-1) * self.mask(batch)[:, None]

    def soft_target(self, batch: Batch, num_classes: int) -> tuple[float, Tensor] | None:
        if self.kind != "kl" or isinstance(self.temperature, str) or num_classes == 1:
            return None
        return self.temperature, (self._teacher(batch) / self.temperature).softmax(-1) * self.mask(batch)[:, None]

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor | None:
        t: Any = self.temperature
        if self.kind != "kl" or t == LEARNED:  # where T is learned, ∂ℓ/∂log T is to be derived as well
            return None
        teacher = self._teacher(batch).to(tangent.dtype)
        apart = expected_tangent(outputs.logits / t, tangent) - expected_tangent(teacher / t, tangent)
        return t * apart * self.mask(batch)
