"""Train text classifiers from supervision that is wrong in different ways on different rows.

What flows where::

    rows (columns) ──► sources: mask [N, K], targets q [N, K, C]
                            │
         clean rows ──► method ──► λ [N, K]        before the forward where the method needs nothing of it
                            │
              T = Σ_k λ_ik q_ik  [N, C]            cross-entropies fold into one soft target; other losses stay [N, K]
                            │
    model(batch) ──► −Σ_c T log p  + Σ λ ℓ ──► backward
                            │
                  corrected label of every row [N, C]

========================  =======================================================================
`amal_hf.trainer`         `AMALTrainer`, a `transformers.Trainer`
`amal_hf.config`          `AMALConfig`, a `TrainingArguments`; `amal_hf.methods`, the table of methods
`amal_hf.losses`          sources of supervision, `(outputs, batch) -> [N]`
`amal_hf.denoising`       the label model of method `denoise`: from clean rows to posteriors `[N, C]`
`amal_hf.mixing`          where the weights λ come from, and how they learn
`amal_hf.metagrad`        `MetaProblem -> [N, K]`: four estimators of ∂V/∂λ and their oracle
`amal_hf.lookahead`       the same, bound to a model and a batch
`amal_hf.labeling`        labeling functions to votes, votes to one distribution
`amal_hf.models`          teachers to columns, students from teachers
`amal_hf.metrics`         accuracy, macro-F1, calibration, offline
`amal_hf.run_folder`      what a run leaves on disk, with the corrected corpus
`amal_hf.report`          what was trusted where, as one HTML page
`amal_hf.corpus`          the embedded corpus of the demo
========================  =======================================================================

What stands here is what most programs need; the rest is imported from its package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amal_hf._types import ROW_ID, Outputs
    from amal_hf.config import AMALConfig
    from amal_hf.losses import CrossEntropy, Distillation, LabelingFunctions, Loss
    from amal_hf.losses.annotators import Annotators
    from amal_hf.methods import METHODS
    from amal_hf.metrics import classification_metrics, multi_label_metrics, regression_metrics
    from amal_hf.mixing import Mixing
    from amal_hf.trainer import AMALTrainer

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ROW_ID",
    "AMALConfig",
    "AMALTrainer",
    "Annotators",
    "CrossEntropy",
    "Distillation",
    "LabelingFunctions",
    "Loss",
    "Mixing",
    "Outputs",
    "classification_metrics",
    "multi_label_metrics",
    "regression_metrics",
]

# Names are imported when they are first asked for: a command line's help needs none of them.
_HOMES = {
    "ROW_ID": "amal_hf._types",
    "Outputs": "amal_hf._types",
    "AMALConfig": "amal_hf.config",
    "Annotators": "amal_hf.losses.annotators",
    "CrossEntropy": "amal_hf.losses",
    "Distillation": "amal_hf.losses",
    "LabelingFunctions": "amal_hf.losses",
    "Loss": "amal_hf.losses",
    "METHODS": "amal_hf.methods",
    "classification_metrics": "amal_hf.metrics",
    "multi_label_metrics": "amal_hf.metrics",
    "regression_metrics": "amal_hf.metrics",
    "Mixing": "amal_hf.mixing",
    "AMALTrainer": "amal_hf.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
