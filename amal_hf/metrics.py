"""Metrics that work offline, over scikit-learn and SciPy: for one class a row, several, or numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error
from transformers import EvalPrediction

from amal_hf.metagrad.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

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

    Over the rows with a label (not negative), which `rows` counts; where no row has one, there is no other metric.

    Example:
        >>> import numpy as np
        >>> classification_metrics(EvalPrediction(np.array([[4.0, 0.0], [4.0, 0.0]]), np.array([0, -100])))
        {'accuracy': 1.0, 'macro_f1': 1.0, 'ece': 0.017986209962, 'rows': 1}
    """
    logits, labels = _logits(prediction), np.asarray(prediction.label_ids)
    there = labels >= 0
    if not there.any():
        return {"rows": 0}
    logits, labels = logits[there], labels[there].astype(int)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probs = shifted / shifted.sum(-1, keepdims=True)
    classes = probs.argmax(-1)
    return {
        **Accuracy().compute(predictions=classes, references=labels),
        **MacroF1().compute(predictions=classes, references=labels),
        **ECE().compute(predictions=probs, references=labels),
        "rows": int(there.sum()),
    }


def multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for `Trainer`: micro- and macro-F1 of p > 0.5 from logits `[N, C]` and labels `[N, C]`.

    Example:
        >>> import numpy as np
        >>> multi_label_metrics(EvalPrediction(np.array([[4.0, -1.0], [2.0, 3.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])))
        {'micro_f1': 0.6666666666666666, 'macro_f1': 0.6666666666666666, 'rows': 2}
    """
    predicted, truth = _labelled(prediction)
    if not len(predicted):
        return {"rows": 0}
    count, predicted, truth = len(predicted), predicted > 0, truth > 0.5
    scores = {f"{kind}_f1": f1_score(truth, predicted, average=kind, zero_division=0.0) for kind in ("micro", "macro")}
    return {**{name: float(score) for name, score in scores.items()}, "rows": count}


def regression_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for `Trainer`: errors and correlations of outputs `[N, C]` and labels `[N]` or `[N, C]`.

    Means over the C outputs; a correlation is NaN while an output says the same of every row.

    Example:
        >>> import numpy as np
        >>> regression_metrics(EvalPrediction(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 4.0])))["mae"]
        0.3333333333333333
    """
    predicted, truth = _labelled(prediction)
    if not len(predicted):
        return {"rows": 0}
    each = list(zip(predicted.T, truth.T, strict=True))
    return {
        "mse": float(mean_squared_error(truth, predicted)),
        "mae": float(mean_absolute_error(truth, predicted)),
        "pearson": float(np.mean([pearsonr(x, y).statistic for x, y in each])),
        "spearman": float(np.mean([spearmanr(x, y).statistic for x, y in each])),
        "rows": len(predicted),
    }


def _labelled(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and labels `[N, C]` of the rows that have a label: no NaN."""
    predicted = _logits(prediction)
    truth = np.asarray(prediction.label_ids).reshape(predicted.shape)
    there = ~np.isnan(truth.astype(float)).any(-1)
    return predicted[there], truth[there]


def _logits(prediction: EvalPrediction) -> np.ndarray:
    """The first of what the model returned, `[N, C]`."""
    found = prediction.predictions
    return np.asarray(found[0] if isinstance(found, tuple) else found)


METRICS: dict[str, Callable[[EvalPrediction], dict[str, float]]] = {
    SINGLE_LABEL: classification_metrics,
    MULTI_LABEL: multi_label_metrics,
    REGRESSION: regression_metrics,
}
"""`compute_metrics` for each task (`AMALTrainer.task`)."""
