"""The student's slow copy: a moving average of what the optimizer moves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amal_hf._types import Tensors
from amal_hf.metagrad import PureModel, trainable


class SlowModel:
    r"""A moving average of the student, taken after every optimizer step.

    $$\bar\theta \leftarrow d_t\,\bar\theta + (1 - d_t)\,\theta, \qquad d_t = \min\big(d, \tfrac{t+1}{t+10}\big)$$

    Holds the trainable parameters only; the rest, and the code, are the student's.

    Args:
        model: the student, unwrapped.
        decay: d in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.params: Tensors = {name: p.detach().clone() for name, p in trainable(model).items()}
        self.steps = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def follow(self) -> None:
        """One step towards the student."""
        keep = min(self.decay, (int(self.steps) + 1) / (int(self.steps) + 10))
        self.steps += 1
        for name, p in trainable(self.model).items():
            self.params[name].lerp_(p.to(self.params[name]), 1 - keep)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the copy says, `[N, C]`, in eval mode; leaves the student and the random state as they are."""
        return PureModel(self.model, inputs, training=False)(self.params).logits.float()

    def state(self) -> Tensors:
        return {"slow/steps": self.steps} | {f"slow/{name}": p for name, p in self.params.items()}

    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned; nothing where there was none."""
        if "slow/steps" not in state:
            return
        self.steps.copy_(state["slow/steps"])
        for name, p in self.params.items():
            p.copy_(state[f"slow/{name}"])
