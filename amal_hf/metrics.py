"""Metrics that work offline: `evaluate.Metric` subclasses over scikit-learn (floor 2)."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction

_DESCRIPTION = "Computed by scikit-learn; needs no network."


class _Offline(evaluate.Metric):
    """A metric of class predictions `[N]` (integers), or of probabilities `[N, C]`."""

    probabilities = False

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64") if self.probabilities else datasets.Value("int64")
        predictions = datasets.List(value) if self.probabilities else value
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=str(self.__doc__),
            features=datasets.Features({"predictions": predictions, "references": datasets.Value("int64")}),
        )


class Accuracy(_Offline):
    """Share of rows whose predicted class is right.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1], references=[0, 1, 0])  # shape: [3]
        {'accuracy': 0.6666666666666666}
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_Offline):
    """F1 per class, averaged over the classes with equal weight.

    Example:
        >>> round(MacroF1().compute(predictions=[0, 1, 1], references=[0, 1, 0])["macro_f1"], 3)
        0.667
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro"))}


class ECE(_Offline):
    r"""Expected calibration error of probabilities `[N, C]`, 15 equal-width bins of confidence.

    $$\mathrm{ECE} = \sum_b \frac{|B_b|}{N}\,\big|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\big|$$

    Example:
        >>> ECE().compute(predictions=[[0.8, 0.2], [0.6, 0.4]], references=[0, 1])["ece"]
        0.4

    References:
        Guo et al. (2017), equation 3.
    """

    probabilities = True

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        probs, truth = np.asarray(predictions), np.asarray(references)
        confidence, right = probs.max(-1), probs.argmax(-1) == truth
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
        return {"ece": round(float(sum(gaps)), 12)}


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for `Trainer`: accuracy, macro-F1 and ECE from logits `[N, C]` and classes `[N]`.

    Example:
        >>> import numpy as np
        >>> classification_metrics(EvalPrediction(np.array([[4.0, 0.0]]), np.array([0])))
        {'accuracy': 1.0, 'macro_f1': 1.0, 'ece': 0.017986209962}
    """
    logits, labels = prediction.predictions, prediction.label_ids
    logits = logits[0] if isinstance(logits, tuple) else logits
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probs = shifted / shifted.sum(-1, keepdims=True)
    classes = probs.argmax(-1)
    return {
        **Accuracy().compute(predictions=classes, references=labels),
        **MacroF1().compute(predictions=classes, references=labels),
        **ECE().compute(predictions=probs, references=labels),
    }
