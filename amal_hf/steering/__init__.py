"""How fast does each loss of each row change along the direction v that the clean rows ask for? (floor 3)

A `Steering` answers for a batch. `D` is `[N, K + C + J]`: the K sources, then one virtual source per class
(−log p_c), whose D is the meta-gradient of the row's soft label (METHODS E2), then one for each of the J
temperatures that are learned. For a head that does not name one class a row (regression, multi-label) nobody is
advised by the classes.

=============================  =============================================================
`amal_hf.steering.base`        what a steering is asked and what it answers
`amal_hf.steering.head`        along the final linear layer
`amal_hf.steering.network`     along every trainable parameter
`amal_hf.steering.processes`   what the processes of a launch tell one another
=============================  =============================================================
"""

from amal_hf.steering.base import Batch, Encode, MetaSampler, Steering, Step, length_of, split_along
from amal_hf.steering.head import HeadSteering
from amal_hf.steering.network import FORWARD_MODE_ATTENTION, NetworkSteering
from amal_hf.steering.processes import everyones, everyones_sum, of_all_processes, summed

__all__ = [
    "FORWARD_MODE_ATTENTION",
    "Batch",
    "Encode",
    "HeadSteering",
    "MetaSampler",
    "NetworkSteering",
    "Steering",
    "Step",
    "everyones",
    "everyones_sum",
    "length_of",
    "of_all_processes",
    "split_along",
    "summed",
]
