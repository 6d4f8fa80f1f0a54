"""Where the weights of a batch are computed: on the CPU, where what they read is small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from amal_hf._types import Outputs


class Columns:
    """A batch as losses and mixing read it, on the model's device and, once asked for, on another.

    `[N, K]` is small: on a GPU the hundred operations that make λ cost their launches, many times themselves, and on
    the CPU the copy of a few columns.

    Args:
        inputs: the batch, where the model reads it.
        columns: what is read of it beside the model's inputs.

    Example:
        >>> batch = Columns({"labels": torch.tensor([1]), "input_ids": torch.tensor([[7, 8]])}, ["labels", "votes"])
        >>> batch.names, batch.on(torch.device("cpu"))["labels"]
        (['labels'], tensor([1]))
    """

    def __init__(self, inputs: Mapping[str, Any], columns: Iterable[str]) -> None:
        self.inputs, self.names = inputs, [name for name in columns if name in inputs]
        self._on: dict[torch.device, Mapping[str, Any]] = {}

    def on(self, device: torch.device) -> Mapping[str, Any]:
        """The batch there: all of it where it is, else its columns alone."""
        if not self.names or self.inputs[self.names[0]].device == device:
            return self.inputs
        if device not in self._on:
            self._on[device] = {name: self.inputs[name].to(device) for name in self.names}
        return self._on[device]

    def place(self, outputs: Outputs, light: bool) -> torch.device:
        """The CPU, where logits and columns are all that is read of a batch (`light`); else where the outputs are."""
        return torch.device("cpu") if light and self.names and [*outputs] == ["logits"] else outputs.logits.device
