"""Weights `[N, K]`: where they come from, and how a meta-gradient moves them.

===============  ================================================================
`Fixed`          a hand-set vector: the incumbent's alpha, or all equal
`Shared`         one learned vector for all rows
`Table`          a free weight per row and source: box (AMAL) or simplex (ALM-KD)
`Trust`          belief of the clean rows in what a source asserts here
`Corrected`      belief in what a source asserts, from the column `log_posterior` (the default's)
`Reweight`       the rectified meta-gradient itself, without memory (L2R)
`MetaWeightNet`  a network reads the losses and gives the weights
`WeightNetwork`  a network reads losses, votes and who agrees; both are `Amortised`
===============  ================================================================
"""

from amal_hf.mixing.base import Mixing, Rows
from amal_hf.mixing.corrected import Corrected
from amal_hf.mixing.fixed import Fixed, Shared
from amal_hf.mixing.network import Amortised, MetaWeightNet, WeightNetwork
from amal_hf.mixing.projections import MeanWeight, box, centred, share, simplex
from amal_hf.mixing.reweight import Reweight
from amal_hf.mixing.table import Table
from amal_hf.mixing.trust import Trust

__all__ = [
    "Amortised", "Corrected", "Fixed", "MeanWeight", "MetaWeightNet", "Mixing", "Reweight", "Rows", "Shared", "Table",
    "Trust", "WeightNetwork", "box", "centred", "share", "simplex",
]  # fmt: skip
