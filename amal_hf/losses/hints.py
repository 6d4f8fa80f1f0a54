"""Hints: a teacher's layers against features that the student returns (FitNets and its kin).

Losses own no model, so the student makes the comparable: it returns pooled, maybe projected hidden states as
`outputs["hints"]` `[N, L, H]` (`amal_hf.models.add_hint_head` teaches any model to), and the projection is among
its parameters, trained, saved and differentiated as they are. The teacher's features are a column, as its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf import _checks
from amal_hf._types import Batch, Outputs
from amal_hf.losses.distillation import TeacherLoss


@dataclass(frozen=True)
class Hint(TeacherLoss):
    r"""Bring the student's layers close to the teacher's.

    With s the student's features `[N, L, H]`, h the teacher's `[N, M, H]` and m the layer map:

    $$\ell_i = \tfrac{1}{LH} \sum_l \lVert s_{il} - h_{i\,m(l)} \rVert^2 \;\text{("mse")} \quad\text{or}\quad
      \ell_i = \tfrac1L \sum_l \big(1 - \cos(s_{il}, h_{i\,m(l)})\big) \;\text{("cosine")}$$

    Args:
        column: the teacher's features, `[N, M, H]`, or `[N, H]` of one layer. A row of `None` or NaN: it abstains.
        layer_map: m, for each of the student's L layers the teacher's, by its place in `column`; None: one to one.
        kind: "mse" or "cosine" (blind to length: for teachers whose features differ in scale).
        output: name of the student's features among its outputs, `[N, L, H]` or `[N, H]`.
        mask_column: a column of booleans `[N]`; where it is False the teacher abstains.

    Returns:
        `[N]`, in squared features ("mse") or 0 to 2 ("cosine"); 0 where the teacher abstains.

    Raises:
        ValueError: unknown `kind`; at the first batch, features whose shapes do not fit.

    Example:
        >>> student = Outputs(logits=torch.zeros(1, 2), hints=torch.tensor([[[1.0, 0.0]]]))
        >>> batch = {"teacher_hidden": torch.tensor([[[9.0, 9.0], [1.0, 2.0]]])}
        >>> Hint(layer_map=(1,))(student, batch)  # shape: [1]
        tensor([2.])

    References:
        Romero et al. (2015, arXiv 1412.6550), equation 3; Jiao et al. (2020, TinyBERT), equation 8, pooled over tokens;
        Sanh et al. (2019, DistilBERT), section 2 (cosine).
    """

    column: str = "teacher_hidden"
    layer_map: tuple[int, ...] | None = None
    kind: Literal["mse", "cosine"] = "mse"
    output: str = "hints"
    mask_column: str = ""

    def __post_init__(self) -> None:
        _checks.one_of("kind", self.kind, ("mse", "cosine"))

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        student = _layered(_features(outputs, self.output))
        teacher = _layered(torch.nan_to_num(batch[self.column])).to(student.dtype)
        if self.layer_map is not None:
            if not all(0 <= layer < teacher.shape[1] for layer in self.layer_map):
                raise ValueError(
                    f"`layer_map`: expected places 0 to {teacher.shape[1] - 1} of column {self.column!r}, found "
                    f"{list(self.layer_map)}."
                )
            teacher = teacher[:, list(self.layer_map)]
        if student.shape != teacher.shape:
            raise ValueError(
                f"`layer_map`: expected the student's features {self.output!r} in the shape of the teacher's, "
                f"{tuple(teacher.shape)} (rows, layers, width), found {tuple(student.shape)}. Map every layer of the "
                "student, and give it a projection to the teacher's width."
            )
        if self.kind == "mse":
            rows = (student - teacher).square().mean((1, 2))
        else:
            rows = 1 - F.cosine_similarity(student, teacher, dim=-1).mean(1)
        return torch.where(self.mask(batch), rows, 0.0)


@dataclass(frozen=True)
class Relation(TeacherLoss):
    r"""Rows that are alike to the teacher be alike to the student: similarity of pooled features, not the features.

    $$\ell_i = \frac{1}{|B_i|} \sum_{j \in B_i} \big(\cos(s_i, s_j) - \cos(h_i, h_j)\big)^2$$

    with $B_i$ the *other* rows of the batch that the teacher covers. So widths may differ and no projection is
    needed; but a row's loss depends on its batch (the smaller the batch, the noisier, and gradient accumulation
    is not the large batch): it is 0 in a batch of one.

    Args:
        column: the teacher's pooled features, `[N, H]`, or `[N, M, H]`, whose last layer is taken.
        output: name of the student's features among its outputs, `[N, H']` or `[N, L, H']` (the last layer is taken).
        mask_column: a column of booleans `[N]`; where it is False the teacher abstains.

    Returns:
        `[N]`, 0 to 4; 0 where the teacher abstains.

    Raises:
        ValueError: at the first batch, a student that returns no such features.

    Example:
        >>> student = Outputs(logits=torch.zeros(2, 2), hints=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> Relation()(student, {"teacher_pooled": torch.tensor([[1.0, 0.0], [3.0, 0.0]])})  # shape: [2]
        tensor([1., 1.])

    References:
        Tung & Mori (2019, arXiv 1907.09682), equation 4, with cosines; Park et al. (2019, RKD), section 3.2.
    """

    column: str = "teacher_pooled"
    output: str = "hints"
    mask_column: str = ""

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        student = _layered(_features(outputs, self.output))[:, -1]
        teacher = _layered(torch.nan_to_num(batch[self.column]))[:, -1].to(student.dtype)
        covered = self.mask(batch)
        others = (
            covered[:, None] & covered & ~torch.eye(len(covered), dtype=torch.bool, device=covered.device)
        )  # [N, N]
        gaps = (_similarity(student) - _similarity(teacher)).square()
        return torch.where(others, gaps, 0.0).sum(1) / others.sum(1).clamp_min(1)


def _features(outputs: Outputs, name: str) -> Tensor:
    if name not in outputs:
        raise ValueError(
            f"`output`: expected a student that returns {name!r}, found only {sorted(outputs)}. Call "
            "`amal_hf.models.add_hint_head(student, ...)` first, or name what yours returns."
        )
    return outputs[name]


def _layered(features: Tensor) -> Tensor:
    """`[N, H]` -> `[N, 1, H]`."""
    return features[:, None] if features.dim() == 2 else features


def _similarity(features: Tensor) -> Tensor:
    """Cosines between the rows, `[N, N]`."""
    unit = F.normalize(features, dim=-1)
    return unit @ unit.T
