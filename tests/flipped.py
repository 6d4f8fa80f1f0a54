"""A planted problem for mixings that see no table: blobs, of whose labels 40 % are flipped, and a linear student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf.metagrad import ForwardMode, MetaProblem
from amal_hf.metagrad.clean_features import centred_unit
from amal_hf.mixing import Mixing, Rows

CLASSES, WIDTH, NUM_ROWS, CLEAN, BATCH = 3, 8, 240, 30, 24


class Flipped:
    """`sources` columns of labels, each flipped on its own on 40 % of the rows; the first is never silent.

    Args:
        sources: K.
        silent: share of rows on which each further source says nothing.
        seed: of the rows.
    """

    def __init__(self, sources: int = 1, silent: float = 0.0, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        centres = 2 * torch.eye(CLASSES, WIDTH, dtype=torch.float64)

        def rows(n: int) -> tuple[Tensor, Tensor]:
            truth = torch.arange(n) % CLASSES
            return centres[truth] + 0.7 * torch.randn(n, WIDTH, generator=draw, dtype=torch.float64), truth

        self.x, self.truth = rows(NUM_ROWS)
        self.clean_x, self.clean_y = rows(CLEAN)
        self.flipped = torch.rand(NUM_ROWS, sources, generator=draw) < 0.4
        by = torch.randint(1, CLASSES, (NUM_ROWS, sources), generator=draw) * self.flipped
        self.said = (self.truth[:, None] + by) % CLASSES  # [rows, K]
        self.mask = torch.rand(NUM_ROWS, sources, generator=draw) >= silent
        self.mask[:, 0] = True
        self.w = torch.zeros(WIDTH, CLASSES, dtype=torch.float64)

    def losses(self, w: Tensor, index: Tensor) -> Tensor:
        """−log p of what each source says, then of each class, `[N, K + C]`."""
        log_p = (self.x[index] @ w).log_softmax(-1)
        return torch.cat([-log_p.gather(1, self.said[index]) * self.mask[index], -log_p], 1)

    def rows(self, index: Tensor, class_gradient: Tensor | None = None) -> Rows:
        """What a mixing sees of rows `index`, as the student is now."""
        k = self.said.shape[1]
        return Rows(
            index=index,
            losses=self.losses(self.w, index)[:, :k],
            mask=self.mask[index],
            targets=F.one_hot(self.said[index], CLASSES).double() * self.mask[index][..., None],
            class_gradient=torch.zeros(len(index), CLASSES, dtype=torch.float64)
            if class_gradient is None
            else class_gradient,
        )

    def directional_derivatives(self, index: Tensor) -> tuple[Rows, Tensor]:
        """The rows with their advice, and ∂V/∂λ per unit of ‖v‖, `[N, K]`, at θ′ = θ."""
        w = self.w.detach().requires_grad_()
        (v,) = torch.autograd.grad(F.cross_entropy(self.clean_x @ w, self.clean_y), [w])
        problem = MetaProblem(
            params={"w": self.w},
            weights=torch.ones(len(index), self.said.shape[1] + CLASSES, dtype=torch.float64),
            losses=lambda params: self.losses(params["w"], index),
            val_loss=lambda params: F.cross_entropy(self.clean_x @ params["w"], self.clean_y),
            lr=1.0,
        )
        along = ForwardMode().directional(problem, {"w": v}) / v.norm()
        k = self.said.shape[1]
        return self.rows(index, centred_unit(along[:, k:])), -along[:, :k]

    def train(self, mixing: Mixing, epochs: int, lr: float = 0.3, seed: int = 0) -> Tensor:
        """As the trainer calls it: update, weights, commit. Returns λ at each row's last visit, `[rows, K]`."""
        draw, last = torch.Generator().manual_seed(seed), torch.zeros(self.said.shape, dtype=torch.float64)
        for _ in range(epochs):
            for index in torch.randperm(NUM_ROWS, generator=draw).split(BATCH):
                rows, gradient = self.directional_derivatives(index)
                mixing.update(rows, gradient)
                last[index] = weights = mixing.weights(rows)
                self.step(index, weights, lr)
                mixing.commit()
        return last

    def step(self, index: Tensor, weights: Tensor, lr: float) -> None:
        w = self.w.requires_grad_()
        loss = (weights * self.losses(w, index)[:, : weights.shape[1]]).sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, [w])
        self.w = (w - lr * gradient).detach()


def auroc(scores: Tensor, positive: Tensor) -> float:
    """How often a positive scores above a negative; ties count half."""
    above = scores[positive][:, None] - scores[~positive][None]
    return ((above > 0).double() + 0.5 * (above == 0).double()).mean().item()


def in_parts(mixing: Callable[[], Mixing], steps: int = 4) -> dict[str, Mixing]:
    """The same 16 rows a step, at once and in micro-batches of four: "1x16" and "4x4"."""
    problem, made = Flipped(sources=3, silent=0.3), {"1x16": mixing(), "4x4": mixing()}
    for step in range(steps):
        index = torch.arange(16 * step, 16 * step + 16)
        for name, size in (("1x16", 16), ("4x4", 4)):
            for part in index.split(size):
                made[name].update(*problem.directional_derivatives(part))
            made[name].commit()
    return made
