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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from amal_hf.losses.annotators import Annotators
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
    "Annotators",
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

# Names are imported when they are first asked for: a command line's help needs none of them.
_HOMES = {
    "ROW_ID": "amal_hf._types",
    "Outputs": "amal_hf._types",
    "AMALConfig": "amal_hf.config",
    "Agreement": "amal_hf.losses",
    "Annotators": "amal_hf.losses.annotators",
    "BinaryCrossEntropy": "amal_hf.losses",
    "CrossEntropy": "amal_hf.losses",
    "Distillation": "amal_hf.losses",
    "Entropy": "amal_hf.losses",
    "FunctionLoss": "amal_hf.losses",
    "LabelingFunctions": "amal_hf.losses",
    "Loss": "amal_hf.losses",
    "LossStack": "amal_hf.losses",
    "MajorityVote": "amal_hf.losses",
    "SquaredError": "amal_hf.losses",
    "METHODS": "amal_hf.methods",
    "ECE": "amal_hf.metrics",
    "METRICS": "amal_hf.metrics",
    "Accuracy": "amal_hf.metrics",
    "MacroF1": "amal_hf.metrics",
    "classification_metrics": "amal_hf.metrics",
    "multi_label_metrics": "amal_hf.metrics",
    "regression_metrics": "amal_hf.metrics",
    "Fixed": "amal_hf.mixing",
    "Mixing": "amal_hf.mixing",
    "Rows": "amal_hf.mixing",
    "Shared": "amal_hf.mixing",
    "Table": "amal_hf.mixing",
    "Trust": "amal_hf.mixing",
    "AMALTrainer": "amal_hf.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
