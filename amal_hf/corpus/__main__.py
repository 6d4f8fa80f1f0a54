"""What each source of supervision in the corpus is worth: `python -m amal_hf.corpus` (seed 0, a few seconds)."""

from __future__ import annotations

import warnings

import numpy as np
from snorkel.labeling import LFAnalysis
from snorkel.labeling.model import MajorityLabelVoter

from amal_hf.corpus import CLASSES, LABELING_FUNCTIONS, load_corpus


def main() -> None:
    """Judges votes, teacher and labels of the training rows by `true_label`."""
    train = load_corpus()["train"].with_format("numpy")
    truth, votes, logits, blind = (train[c][:] for c in ("true_label", "weak_labels", "teacher_logits", "blind_region"))
    with warnings.catch_warnings():
        # scipy's, about a call inside snorkel 0.10 that does not concern the numbers
        warnings.simplefilter("ignore", FutureWarning)
        table = LFAnalysis(votes, LABELING_FUNCTIONS).lf_summary(truth)
    print(table[["Polarity", "Coverage", "Conflicts", "Emp. Acc."]].round(3).to_string(), end="\n\n")

    majority = MajorityLabelVoter(cardinality=len(CLASSES)).predict(votes, tie_break_policy="abstain")
    decided = majority >= 0
    right = logits.argmax(1) == truth
    odds = np.exp(logits - logits.max(1, keepdims=True))
    confidence = 1 / odds.sum(1)  # of the class the teacher names
    agrees = majority == truth
    print(f"label          right on {np.mean(train['label'][:] == truth):.1%} of {len(truth)} rows")
    print(f"majority vote  decides {decided.mean():.1%} of the rows: right on {agrees[decided].mean():.1%} of these")
    for region, rows in (("outside", ~blind), ("inside ", blind)):
        print(
            f"teacher        {region} the blind region, {rows.mean():.1%} of the rows: "
            f"right on {right[rows].mean():.1%}, mean confidence {confidence[rows].mean():.2f}"
        )


if __name__ == "__main__":
    main()
