r"""CAGE and the student trained together, as SPEAR does, inside a `Trainer` run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from transformers import TrainerCallback
from transformers.utils import logging

from amal_hf import _checks
from amal_hf._files import write_tensors
from amal_hf._types import Batch, Outputs
from amal_hf.labeling.cage import CAGE, Quality, per_indicator
from amal_hf.losses import (
    ABSTAIN,
    FromVotes,
    Loss,
    labelled_likelihood,
    posterior_divergence,
    quality_guide,
    vote_likelihood,
)

logger = logging.get_logger(__name__)

STATE_FILE = "cage.safetensors"


class JointCAGE(TrainerCallback):
    r"""CAGE's own step at every optimizer step of the student, on the same rows.

    $$\theta \leftarrow \text{Adam}\Big(\nabla_\theta\big[\overline{L_4} + \overline{L_5} + \overline{L_6}
      + \textstyle\sum_j L_{7,j}\big]\Big)$$

    with the student's logits detached, while the student's sources read $P_\theta(y \mid l)$ detached. As both steps
    start from the same (student, θ), this is one step of SPEAR's joint objective with its two learning rates (a Jacobi
    step); what the mixing adds is λ on the student's part. L4 is of gold rows, L5 of the others, L6 of rows that some
    function votes on.

    Args:
        cage: where θ starts; a copy of it is trained.
        gold: column of classes `[N]`, missing where a row has none; None: no row has one (no L4).
        votes: column of votes `[N, M]`, -1 abstains.
        quality: as for `CAGE.fit`; None: no L7.
        lr: Adam's, of θ.

    Example:
        >>> from amal_hf.losses import Agreement, PosteriorLabel
        >>> joint = JointCAGE(CAGE.fit([[0, 0], [1, 1], [0, -1], [-1, 1]], num_classes=2), gold=None)
        >>> sources = {"cage": joint.source(Agreement("cage")), "cage label": joint.source(PosteriorLabel("cage"))}
        >>> # AMALTrainer(..., losses=sources, callbacks=[joint]); afterwards joint.cage.posterior(votes): [N, C]

    References:
        Maheshwari et al. (2021), arXiv 2008.09887, section 3.
    """

    def __init__(
        self,
        cage: CAGE,
        gold: str | None = "gold",
        votes: str = "weak_labels",
        quality: Quality = 0.9,
        lr: float = 0.01,
    ) -> None:
        _checks.positive("lr", lr)
        self.gold, self.votes, self.lr = gold, votes, lr
        self.believed = per_indicator(quality, cage.num_functions, cage.functions)
        self.start = cage.theta.clone()
        self.theta = nn.Parameter(cage.theta.clone())
        self.cage = replace(cage, theta=self.theta)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._last: Tensor | None = None
        self._in_run = False
        self._begin()

    def source(self, loss: Loss) -> Loss:
        """`loss`, its posterior column read from θ as it is: `Agreement` is L6, `PosteriorLabel` L3 (on any row)."""
        return _Recorded(loss, self.cage.posterior, self.votes, joint=self)

    def accumulate(self, outputs: Outputs, batch: Batch) -> None:
        """Keep a batch's votes, gold and logits for the step of θ.

        The training forward comes first with a batch; the lookahead's perturbed forwards follow with the same tensors.

        Raises:
            ValueError: this is not among the callbacks of the trainer.
        """
        if not outputs.logits.requires_grad or batch[self.votes] is self._last:
            return
        if not self._in_run:
            raise ValueError(
                "`callbacks`: expected the JointCAGE whose sources are trained on among the trainer's callbacks, found "
                "that no run has told it of its start. Pass callbacks=[joint]."
            )
        self._last = votes = batch[self.votes]
        gold = votes.new_full((len(votes),), -100) if self.gold is None else batch[self.gold]
        self.rows.append((votes, gold, outputs.logits.detach()))

    def objective(self, votes: Tensor, gold: Tensor, logits: Tensor) -> Tensor:
        """SPEAR's L4 + L5 + L6 + L7 of a batch, a scalar, as a function of θ.

        Args:
            votes: `[N, M]`, -1 abstains.
            gold: `[N]`, negative where a row has no class.
            logits: the student's, `[N, C]`, of the same rows in the same order.
        """
        log_joint, known, covered = self.cage.log_joint(votes), gold >= 0, (votes != ABSTAIN).any(1)
        parts = (
            labelled_likelihood(log_joint, gold)[known],
            vote_likelihood(log_joint)[~known],
            posterior_divergence(logits, log_joint)[covered],
        )
        total = torch.stack([part.sum() / max(len(part), 1) for part in parts]).sum()
        if self.believed is not None:
            classes = self.cage.classes.to(total.device)
            total = total + quality_guide(self.theta.to(total.device), classes, self.believed.to(total.device)).sum()
        return total

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()
        self._in_run = True
        if state.global_step:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forget()  # what was recorded between steps is no training: refresh="epoch" asks the losses too

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.rows:
            return
        votes, gold, logits = (torch.cat(each) for each in zip(*self.rows, strict=True))
        self._forget()
        (gradient,) = torch.autograd.grad(self.objective(votes, gold, logits), self.theta)
        if distributed.is_available() and distributed.is_initialized():  # each process saw rows of its own
            gradient = gradient.to(logits.device)
            distributed.all_reduce(gradient)
            gradient = gradient / distributed.get_world_size()
        self.theta.grad = gradient.to(self.theta.device)
        self.optimizer.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_run = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = {"theta": self.theta, **self.optimizer.state[self.theta]}
            write_tensors(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE, kept)

    def _begin(self) -> None:
        """θ and its optimizer as at the start of a run."""
        self.theta.data.copy_(self.start)
        self.optimizer = torch.optim.Adam([self.theta], lr=self.lr)
        self._forget()

    def _forget(self) -> None:
        self.rows, self._last = [], None

    def _resume(self, path: Path) -> None:
        if not path.is_file():
            logger.warning(f"`resume_from_checkpoint`: no {STATE_FILE} in {path.parent}; CAGE starts anew.")
            return
        kept = load_file(path)
        self.theta.data.copy_(kept.pop("theta"))
        self.optimizer.state[self.theta].update(kept)


@dataclass(frozen=True)
class _Recorded(FromVotes):
    """A `FromVotes` that lets a `JointCAGE` see the student's logits."""

    # law 2, a loss owns no model: bent, because only a source is shown votes, gold and logits of the same rows;
    # its value stays a function of (outputs, batch, θ), and θ moves between steps alone
    joint: JointCAGE = field(kw_only=True)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.votes,) if self.joint.gold is None else (self.votes, self.joint.gold)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        self.joint.accumulate(outputs, batch)
        return super().__call__(outputs, batch)
