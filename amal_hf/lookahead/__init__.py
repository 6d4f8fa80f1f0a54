"""Directional derivatives D of every loss of every row along v, the direction that the clean rows ask for.

A `Lookahead` answers for a batch. `D` is `[N, K + C + J]`: the K sources, then one virtual source per class
(−log p_c), whose D is the meta-gradient of the row's soft label (docs/method.md (E2)), then one for each of the J
temperatures that are learned. For a head that does not name one class a row (regression, multi-label) there is no
class gradient.

=============================  =============================================================
`amal_hf.lookahead.base`        the abstract class, a batch and its step
`amal_hf.lookahead.head`        along the final linear layer
`amal_hf.lookahead.full_model`     along every trainable parameter
`amal_hf._distributed`   what the processes of a launch exchange
=============================  =============================================================
"""

from amal_hf._distributed import everyones, everyones_sum, of_all_processes, summed
from amal_hf.lookahead.base import Batch, Encode, Lookahead, MetaSampler, Step, length_of, split_along
from amal_hf.lookahead.full_model import FORWARD_MODE_ATTENTION, FullModelLookahead
from amal_hf.lookahead.head import HeadLookahead

__all__ = [
    "FORWARD_MODE_ATTENTION",
    "Batch",
    "Encode",
    "FullModelLookahead",
    "HeadLookahead",
    "Lookahead",
    "MetaSampler",
    "Step",
    "everyones",
    "everyones_sum",
    "length_of",
    "of_all_processes",
    "split_along",
    "summed",
]
