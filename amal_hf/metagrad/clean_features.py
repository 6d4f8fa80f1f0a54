r"""Clean rows as the head sees them, kept between lookaheads.

A meta step encodes only a few clean rows; the memory keeps the features of all of them, each as
fresh as its last visit. V is then the loss of *all* clean rows, at no further forward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Tensors
from amal_hf.metagrad.head import Head
from amal_hf.metagrad.tasks import SINGLE_LABEL, clean_loss

SMALL = 2**24
"""Multiplications that a CPU core has done in a few milliseconds."""


class CleanFeatureBank:
    """Features `[M, H]` and labels of the clean rows.

    Args:
        labels: class of every clean row, `[M]`; its numbers, `[M]` or `[M, C]`, for another `task`.
        num_classes: C.
        width: H, the head's input size.
        task: what V measures; `blended_direction` is for classes only.
    """

    def __init__(self, labels: Tensor, num_classes: int, width: int, task: str = SINGLE_LABEL) -> None:
        self.labels, self.num_classes, self.task = labels, num_classes, task
        self.features = torch.zeros(len(labels), width, device=labels.device)

    def encode_clean_rows(self, rows: Tensor, features: Tensor) -> None:
        """Replace the features of `rows` `[B]` by `features` `[B, H]`."""
        self.features[rows] = features.to(self.features)

    def loss(self, head: Head, params: Tensors, rows: Tensor | None = None) -> Tensor:
        """V: mean loss of the head `params` on the clean rows (or a subset)."""
        pick = slice(None) if rows is None else rows
        weight = params[head.weight]
        return clean_loss(self.task, head.logits(params, self.features[pick].to(weight)), self.labels[pick])

    def blended_direction(
        self, head: Head, present: Tensors, probe_weight: float, ridge: float = 1.0
    ) -> tuple[Tensors, float]:
        r"""The direction v, and how far the class gradient along it can be believed.

        $$v = (1-w)\,\frac{v_\text{now}}{\lVert\tilde H v_\text{now}\rVert_\text{rms}}
              + w\,\frac{v_\text{probe}}{\lVert\tilde H v_\text{probe}\rVert_\text{rms}}, \qquad
          v_\text{probe} = \big(\tilde H^\top S \tilde H + \rho\,\bar d\, I\big)^{-1}
              \tilde H^\top S \big(\tfrac1C \mathbf 1 - Y\big)$$

        with $\tilde H$ the features and a column of ones, Y the one-hot classes, S giving every class the
        same share whatever its number of clean rows, and $\bar d$ the mean diagonal. $v_\text{probe}$ is the
        Newton step of a head *retrained from zero* on the clean rows: the one-step lookahead asks what helps
        now, and answers with the source of the largest residual; the probe asks what a head would learn in the end.

        The inverse temperature τ of softmax(τ a) is the one that predicts the clean rows best, each from the
        *others* (leave-one-out, in closed form): near 0 while the features separate no classes, larger as they do.

        Args:
            present: $v_\text{now}$, ∇V at the student (or after its lookahead); shapes as the head's parameters.
            probe_weight: w in [0, 1]; 0 returns `present` as it is.
            ridge: ρ, relative to the mean diagonal.

        Returns:
            v, shapes as `present`; τ ≥ 0, in nats per unit of the class gradient.

        References:
            Hoerl & Kennard (1970), equation 2.1 (ridge); Allen (1974), PRESS (leave-one-out in closed form).
        """
        rows, width = self.features.shape
        # a small system is solved on the CPU before a GPU has launched it
        device = torch.device("cpu") if rows * width * min(rows, width) < SMALL else self.features.device
        features, labels = self.features.to(device), self.labels.to(device)
        design = torch.cat([features, torch.ones_like(features[:, :1])], 1).double()  # [M, H + 1]
        truth = F.one_hot(labels, self.num_classes).double()
        counts = truth.sum(0)
        shares = (truth / counts.clamp_min(1)).sum(1, keepdim=True) / (counts > 0).sum()  # [M, 1], sum 1
        now = self._stacked(head, {name: v.to(device) for name, v in present.items()})
        probe, probe_left_out = ridge_leave_one_out(design, shares, 1 / self.num_classes - truth, ridge)
        student = {name: p.detach().to(features) for name, p in head.params().items()}
        residual = head.logits(student, features).double().softmax(-1) - truth
        now_left_out = design @ now - _length(design).square() * residual * _scale_of(now, design, residual)
        scales = [w / size if (size := _rms(design @ v)) > 0 else 0.0
                  for w, v in ((1 - probe_weight, now), (probe_weight, probe))]  # fmt: skip
        class_gradient = centred_unit(-(scales[0] * now_left_out + scales[1] * probe_left_out))
        inverse_temperature = _best_inverse_temperature(class_gradient, labels, shares[:, 0])
        if probe_weight == 0:
            return present, inverse_temperature
        blend = (scales[0] * now + scales[1] * probe).to(features)
        direction = {head.weight: blend[:-1].T}
        if head.bias is not None:
            direction[head.bias] = blend[-1]
        return direction, inverse_temperature

    @staticmethod
    def _stacked(head: Head, direction: Tensors) -> Tensor:
        """A direction of the head as one matrix, `[H + 1, C]`, the bias last."""
        weight = direction[head.weight].double().T
        bias = direction[head.bias].double() if head.bias is not None else torch.zeros_like(weight[0])
        return torch.cat([weight, bias[None]])


def centred_unit(class_gradient: Tensor) -> Tensor:
    """Centred over classes and of unit length per row, `[N, C]`; a row of zeros stays."""
    class_gradient = class_gradient - class_gradient.mean(1, keepdim=True)
    return class_gradient / class_gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)


def ridge_leave_one_out(design: Tensor, shares: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Weighted ridge regression, $\beta = (X^\top S X + c I)^{-1} X^\top S\, t$ with $c = \rho\,\bar d$.

    With fewer rows than columns, $A = S^{1/2} X$ gives the same from a matrix of rows,
    $\beta = A^\top (A A^\top + c I)^{-1} S^{1/2} t$, whatever the width of the features.

    Args:
        design: X, `[M, H + 1]`.
        shares: the diagonal of S, ≥ 0, `[M, 1]`.
        target: t, `[M, C]`.
        ridge: ρ > 0, relative to $\bar d$, the mean diagonal of $X^\top S X$.

    Returns:
        coefficients β, `[H + 1, C]`, and each row's prediction by the others, `[M, C]`.

    Example:
        >>> rows, same = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5], [0.5]])
        >>> ridge_leave_one_out(rows, same, torch.tensor([[2.0], [4.0]]), ridge=0.5)[1]  # of 4, and of 2, halved
        tensor([[2.],
                [1.]])

    References:
        Hoerl & Kennard (1970), equation 2.1; Allen (1974), PRESS.
    """
    num_rows, width = design.shape
    scaled = shares.sqrt() * design
    penalty = ridge * scaled.square().sum() / width
    if num_rows < width:
        gram = scaled @ scaled.T
        gram.diagonal().add_(penalty)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))  # [M, M]
        coefficients = scaled.T @ (inverse @ (shares.sqrt() * target))
        leverage = 1 - penalty * inverse.diagonal()
    else:
        gram = scaled.T @ scaled
        gram.diagonal().add_(penalty)
        solved = torch.cholesky_solve(scaled.T, torch.linalg.cholesky(gram))  # [H + 1, M]
        coefficients = solved @ (shares.sqrt() * target)
        leverage = (scaled * solved.T).sum(1)
    leverage = leverage.clamp_max(1 - 1e-6)[:, None]
    return coefficients, (design @ coefficients - leverage * target) / (1 - leverage)


def _scale_of(now: Tensor, design: Tensor, residual: Tensor) -> float:
    """What one clean row adds to `now` beside its residual: 1/M, times whatever metric the lookahead has."""
    plain = design.T @ residual / len(design)
    return float((now * plain).sum() / plain.square().sum().clamp_min(1e-30)) / len(design)


def _length(rows: Tensor) -> Tensor:
    return rows.norm(dim=1, keepdim=True)


def _rms(moved: Tensor) -> float:
    return float((moved - moved.mean(1, keepdim=True)).square().mean().sqrt())


def _best_inverse_temperature(class_gradient: Tensor, labels: Tensor, shares: Tensor) -> float:
    """τ of the grid whose softmax(τ a) gives the rows' classes the highest mean log-probability."""
    grid = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], dtype=class_gradient.dtype)
    log_p = (grid.to(class_gradient.device)[:, None, None] * class_gradient).log_softmax(-1)  # [grid, M, C]
    picked = log_p[:, torch.arange(len(labels), device=labels.device), labels]
    return float(grid[int((picked * shares).sum(1).argmax())])
