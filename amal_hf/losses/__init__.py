"""Sources of supervision as pure, unreduced losses (floor 1).

Every source answers one question: *how far is the student from what this source says about this
row?* The answer is a number per row, `[N]`, in nats, and a mask. A block of labeling functions
answers `[N, k]`. `LossStack` sets them side by side as `[N, K]`, the shape that runs through the
house.

=====================  ==========================================================
`CrossEntropy`         any column that holds a class or a distribution
`Distillation`         a teacher's cached logits or probabilities
`LabelingFunctions`    one source per labeling function
`MajorityVote`         one source for all of them
`Entropy`              confidence, e.g. on rows no function covers
`Agreement`            KL(student ‖ posterior)
`FunctionLoss`         your own `(outputs, batch) -> [N]`
=====================  ==========================================================
"""

from amal_hf.losses.base import FunctionLoss, Loss
from amal_hf.losses.cross_entropy import CrossEntropy
from amal_hf.losses.distillation import Distillation
from amal_hf.losses.labeling import ABSTAIN, LabelingFunctions, MajorityVote
from amal_hf.losses.regularizers import Agreement, Entropy
from amal_hf.losses.stack import LossStack

__all__ = [
    "ABSTAIN",
    "Agreement",
    "CrossEntropy",
    "Distillation",
    "Entropy",
    "FunctionLoss",
    "LabelingFunctions",
    "Loss",
    "LossStack",
    "MajorityVote",
]
