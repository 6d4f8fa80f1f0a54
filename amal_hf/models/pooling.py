"""Hidden states as one vector per row and layer: what teachers' columns hold and what hints compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_pooled(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the tokens that are there.

    Args:
        hidden: `[N, T, H]`.
        mask: `[N, T]`, 1 where there is a token; None: everywhere.

    Returns:
        `[N, H]`.

    Example:
        >>> mean_pooled(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))  # shape: [1, 1]
        tensor([[2.]])
    """
    if mask is None:
        return hidden.mean(1)
    real = mask[..., None].to(hidden)
    return (hidden * real).sum(1) / real.sum(1).clamp_min(1)


def token_pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The state of one token, or `mean_pooled`, as an encoder was trained to be read, `[N, H]`.

    Args:
        hidden: `[N, T, H]`.
        mask: `[N, T]`, 1 where there is a token, which are the first ones of a row.
        pooling: "mean"; "cls", the first token's; "last", that of the last token that is there.

    Example:
        >>> hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> [token_pooled(hidden, mask, pooling).item() for pooling in ("mean", "cls", "last")]
        [2.0, 1.0, 3.0]
    """
    if pooling == "mean":
        return mean_pooled(hidden, mask)
    at = 0 if pooling == "cls" else (mask.sum(1).long() - 1).clamp_min(0)
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


def pooled_layers(hidden_states: Sequence[Tensor], mask: Tensor | None, layers: Sequence[int]) -> Tensor:
    """`mean_pooled` of the chosen `layers`, `[N, L, H]`; 0 is the embeddings, i what layer i puts out, -1 the last.

    Args:
        hidden_states: of the embeddings and every layer, each `[N, T, H]`.
        mask: `[N, T]`, as for `mean_pooled`.
    """
    return torch.stack([mean_pooled(hidden_states[layer], mask) for layer in layers], 1)


def check_layers(layers: Sequence[int], count: int) -> None:
    """`layers` are those of a model with `count` layers.

    Raises:
        ValueError: a layer that the model has not.
    """
    if not all(-1 <= layer <= count for layer in layers):
        raise ValueError(
            f"`layers`: expected numbers from 0 (embeddings) to {count} (the last layer), or -1, found {list(layers)}."
        )
