"""Train text classifiers from supervision that is wrong in different ways on different rows.

What flows where::

    dataset rows ─► collator ─► losses [N, K] ──┐
     (columns)                                   ├─► (λ ⊙ ℓ).sum(1).mean() ─► backward
                      mixing weights λ [N, K] ───┘
                             ▲
                             └── update ◄── meta-gradient [N, K] ◄── clean (meta) rows

=====================  ==========================================================
`amal_hf.losses`       sources of supervision, `(outputs, batch) -> [N]`
`amal_hf.mixing`       where the weights come from, and how they move
`amal_hf.metagrad`     `MetaProblem -> [N, K]`: four estimators and their oracle
`amal_hf.labeling`         labeling functions to votes, votes to one distribution
`amal_hf.denoising`     what a few clean rows say about every other row
`amal_hf.models`      teachers to columns, students from teachers
`amal_hf.config`       `AMALConfig`, the methods
`amal_hf.beforehand`   `with_evidence`: the clean rows asked once, before a run
`amal_hf.trainer`      `AMALTrainer`, a `transformers.Trainer`
`amal_hf.run_folder.corrected`    `denoised`: every training row with its corrected label, after it
`amal_hf.corpus`       the embedded corpus of the demo
`amal_hf.report`       what was trusted where, as one HTML page
=====================  ==========================================================
"""

from amal_hf._types import ROW_ID, Outputs
from amal_hf.config import AMALConfig
from amal_hf.losses import (
    Agreement,
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    Entropy,
    FunctionLoss,
    LabelingFunctions,
    Loss,
    LossStack,
    MajorityVote,
    SquaredError,
)
from amal_hf.methods import METHODS
from amal_hf.metrics import (
    ECE,
    METRICS,
    Accuracy,
    MacroF1,
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
)
from amal_hf.mixing import Fixed, Mixing, Rows, Shared, Table, Trust
from amal_hf.trainer import AMALTrainer

__version__ = "0.1.0"

__all__ = [
    "ECE",
    "METHODS",
    "METRICS",
    "ROW_ID",
    "AMALConfig",
    "AMALTrainer",
    "Accuracy",
    "Agreement",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Distillation",
    "Entropy",
    "Fixed",
    "FunctionLoss",
    "LabelingFunctions",
    "Loss",
    "LossStack",
    "MacroF1",
    "MajorityVote",
    "Mixing",
    "Outputs",
    "Rows",
    "Shared",
    "SquaredError",
    "Table",
    "Trust",
    "classification_metrics",
    "multi_label_metrics",
    "regression_metrics",
]
