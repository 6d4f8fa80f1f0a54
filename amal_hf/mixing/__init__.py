"""Weights `[N, K]`: where they come from, and how a meta-gradient moves them (floor 1).

==========  ================================================================
`Fixed`     a hand-set vector: the incumbent's alpha, or all equal
`Shared`    one learned vector for all rows
`Table`     a free weight per row and source: box (AMAL) or simplex (ALM-KD)
`Trust`     the default: belief of the clean rows in what a source says here
==========  ================================================================
"""

from amal_hf.mixing.base import Mixing, Rows
from amal_hf.mixing.fixed import Fixed, Shared
from amal_hf.mixing.projections import box, centred, share, simplex
from amal_hf.mixing.table import Table
from amal_hf.mixing.trust import Trust

__all__ = ["Fixed", "Mixing", "Rows", "Shared", "Table", "Trust", "box", "centred", "share", "simplex"]
