"""Shapes and names shared by all packages.

Symbols (`i` is a row, `k` a source of supervision):

========  ===========  ==========================================================
`[N, K]`  `losses`     unreduced losses, in nats; 0 where a source abstains
`[N, K]`  `mask`       True where source `k` covers row `i`
`[N, K]`  `weights`    mixing weights λ
`[N, K]`  `gradient`   ∂V/∂λ, the meta-gradient: negative means "trust it more"
dict      `params`     name -> tensor, what the lookahead moves
========  ===========  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import register_pytree_node

LABELS = "labels"
"""Key of a batch that holds the classes of its rows, `[N]`."""

ROW_ID = "row_id"
"""Column that identifies a training row across epochs, processes and runs."""

Tensors = dict[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]
RowFunction = Callable[[Any, Batch], torch.Tensor]
"""A user's loss: `(outputs, batch) -> [N]`."""


class Outputs(dict[str, Any]):
    """What a model returned, readable as `outputs["logits"]` and as `outputs.logits`.

    `logits` is `[N, C]` (nats, unnormalised); `hidden_states`, where the model returns them, is a
    tuple of `[N, T, H]`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model returned {sorted(self)}, not {name!r}") from None

    def detached(self) -> Outputs:
        """The same without their graph."""
        return Outputs({name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in self.items()})


# outputs pass through `torch.func.jvp` and are averaged leaf by leaf
register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), tuple(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="amal_hf.Outputs",
)
