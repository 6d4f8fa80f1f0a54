"""Sources of supervision as pure, unreduced losses.

Every source answers one question: *how far is the student from what this source asserts about this
row?* The answer is a number per row, `[N]`, in nats, and a mask. A block of labeling functions
answers `[N, k]`. `LossStack` sets them side by side as `[N, K]`, the shape that runs through the
package.

=====================  ==========================================================
`CrossEntropy`         any column that holds a class or a distribution
`SquaredError`         numbers: regression
`BinaryCrossEntropy`   several classes a row: multi-label
`Distillation`         a teacher's cached logits or probabilities
`LabelingFunctions`    one source per labeling function
`MajorityVote`         one source for all of them
`Entropy`              confidence, e.g. on rows no function covers
`Agreement`            KL(student ‖ posterior)
`PosteriorLabel`       the likeliest class of a posterior
`Unlabelled`           another loss, on the rows without a gold class
`FromVotes`            a loss of a posterior that votes give at the time
`FunctionLoss`         your own `(outputs, batch) -> [N]`
=====================  ==========================================================

SPEAR's seven losses, among them those of CAGE's own parameters, are listed in `amal_hf.losses.spear`.
"""

from amal_hf.losses.base import FunctionLoss, Loss
from amal_hf.losses.cross_entropy import CrossEntropy
from amal_hf.losses.distillation import LEARNED, Distillation
from amal_hf.losses.hints import Hint, Relation
from amal_hf.losses.labeling import ABSTAIN, LabelingFunctions, MajorityVote
from amal_hf.losses.regularizers import Agreement, Entropy
from amal_hf.losses.spear import (
    FromVotes,
    PosteriorLabel,
    Unlabelled,
    cage_log_joint,
    labelled_likelihood,
    posterior_divergence,
    quality_guide,
    vote_likelihood,
)
from amal_hf.losses.stack import LossStack
from amal_hf.losses.tasks import BinaryCrossEntropy, SquaredError
from amal_hf.losses.temperature import Temperatures

__all__ = [
    "ABSTAIN",
    "LEARNED",
    "Agreement",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Distillation",
    "Entropy",
    "FromVotes",
    "FunctionLoss",
    "Hint",
    "LabelingFunctions",
    "Loss",
    "LossStack",
    "MajorityVote",
    "PosteriorLabel",
    "Relation",
    "SquaredError",
    "Temperatures",
    "Unlabelled",
    "cage_log_joint",
    "labelled_likelihood",
    "posterior_divergence",
    "quality_guide",
    "vote_likelihood",
]
