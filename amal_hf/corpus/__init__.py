"""The embedded corpus: a text classification task whose supervision is wrong in known places.

Messages to the support desk of Pinwheel, an invented city bike-share, sorted into five classes. Nothing is downloaded;
everything follows from a seed. Each row carries three kinds of supervision, each wrong somewhere else:

==================  ==================  ==========================================================================
`label`             int `[N]`           in train, a share `noise` of the rows moved to another class by chance
`weak_labels`       int `[N, M]`        Snorkel labeling functions; wrong where a rule of thumb is: in side remarks
                                        ("the invoice is fine, but the brakes ..."), sarcasm, praise that names parts
`teacher_logits`    float `[N, C]`      a teacher trained before the Lark, the leased electric bike, existed; sure of
                                        itself and wrong on messages about it, good elsewhere
==================  ==================  ==========================================================================

and, to judge what a run learned and for nothing else, `true_label` (train only) and `blind_region` (True on the Lark).

What `python -m amal_hf.corpus` prints, on the training rows of seed 0::

                 Polarity  Coverage  Conflicts  Emp. Acc.
    euro_sign         [0]     0.055      0.019      0.962
    bike_number       [1]     0.068      0.028      0.780
    shut_out          [2]     0.041      0.007      0.929
    reason_to_go      [3]     0.027      0.007      0.954
    instalment        [0]     0.044      0.015      1.000
    battery           [1]     0.045      0.013      0.963
    asks_to_end       [3]     0.077      0.037      0.654
    money_words       [0]     0.185      0.086      0.727
    bike_parts        [1]     0.186      0.081      0.500
    broken_words      [1]     0.119      0.046      0.766
    login_words       [2]     0.270      0.114      0.438
    enthusiasm        [4]     0.074      0.051      0.520
    suggests          [4]     0.042      0.021      0.780

    label          right on 60.0% of 2400 rows
    majority vote  decides 64.7% of the rows: right on 76.7% of these
    teacher        outside the blind region, 81.5% of the rows: right on 91.3%, mean confidence 0.93
    teacher        inside  the blind region, 18.5% of the rows: right on 2.7%, mean confidence 0.76

A logistic regression on TF-IDF, trained on the true labels, is right on 91 % of the test rows: a bag of words cannot
tell which of two matters a message is about. Some 4 % of the rows two colleagues would file differently.

=============  =====================================================
`phrases`      classes and core sentences
`lark`         core sentences of the blind region
`around`       second matters, remarks, greetings
`writer`       puts them together into messages
`rules`        the labeling functions and their votes
`teacher`      the teacher and its logits
=============  =====================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from amal_hf.corpus.phrases import CLASSES
from amal_hf.corpus.rules import LABELING_FUNCTIONS, votes
from amal_hf.corpus.teacher import logits, train_teacher
from amal_hf.corpus.writer import Message, Writer

__all__ = ["CLASSES", "LABELING_FUNCTIONS", "load_corpus"]

SIZES = {"train": 2400, "clean": 120, "selection": 200, "test": 1000}
TEACHER_ROWS = 4000


def load_corpus(seed: int = 0, noise: float = 0.4) -> DatasetDict:
    """The corpus as four splits: noisy `train`, `clean` (a few true labels), `selection` (chooses), `test` (judges).

    No text occurs twice. Texts, votes and teacher depend on `seed` alone; the rows flipped at a lower `noise` are among
    those flipped at a higher one, to the same classes.

    Args:
        seed: determines everything.
        noise: share of training labels moved to another class, each of the C - 1 others with equal chance.

    Returns:
        Columns of every split (`N` rows, `M` labeling functions, `C` classes):

        - `row_id`, int64 `[N]`: unique in the whole corpus; 0 to N - 1 in train
        - `text`, string `[N]`: mostly 10 to 30 words
        - `label`, ClassLabel `[N]`
        - `weak_labels`, int64 `[N, M]`: class or -1 (abstains), in the order of `LABELING_FUNCTIONS`
        - `teacher_logits`, float32 `[N, C]`, in nats
        - `blind_region`, bool `[N]`: the teacher saw nothing of this kind. For judging only.

        and in train `true_label`, ClassLabel `[N]`: the label before noise. For judging weights, never for training.

    Raises:
        ValueError: `noise` outside [0, 1].

    Example:
        >>> corpus = load_corpus()
        >>> {name: split.num_rows for name, split in corpus.items()}
        {'train': 2400, 'clean': 120, 'selection': 200, 'test': 1000}
        >>> corpus["train"].features["label"].names
        ['billing', 'fault', 'account', 'cancellation', 'feedback']
        >>> row = corpus["train"][0]
        >>> len(row["weak_labels"]), len(row["teacher_logits"])  # M, C
        (13, 5)
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"`noise`: expected a share of rows in [0, 1], found {noise}.")
    words, flips = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2))
    writer = Writer(words)
    messages = writer.write(sum(SIZES.values()))
    teacher = train_teacher(writer.write(TEACHER_ROWS, lark=False))
    columns = _columns(messages, logits(teacher, [message.text for message in messages]))

    splits, start = DatasetDict(), 0
    for name, size in SIZES.items():
        rows = {column: values[start : start + size] for column, values in columns.items()}
        start += size
        if name == "train":
            rows["true_label"] = rows["label"]
            rows["label"] = _flipped(rows["label"], noise, flips)
        splits[name] = Dataset.from_dict(rows, features=_features(rows))
    return splits


def _columns(messages: list[Message], teacher_logits: np.ndarray) -> dict[str, Any]:
    texts = [message.text for message in messages]
    return {
        "row_id": np.arange(len(messages)),
        "text": texts,
        "label": np.array([message.label for message in messages]),
        "weak_labels": votes(texts),
        "teacher_logits": teacher_logits,
        "blind_region": np.array([message.blind_region for message in messages]),
    }


def _flipped(labels: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The labels `[N]`, a share `noise` of them moved to another class."""
    rows, shift = rng.permutation(len(labels)), rng.integers(1, len(CLASSES), len(labels))
    shift[rows[round(noise * len(labels)) :]] = 0
    return (labels + shift) % len(CLASSES)


def _features(columns: dict[str, Any]) -> Features:
    label = ClassLabel(names=list(CLASSES))
    features = {
        "row_id": Value("int64"),
        "text": Value("string"),
        "label": label,
        "true_label": label,
        "weak_labels": Sequence(Value("int64"), length=len(LABELING_FUNCTIONS)),
        "teacher_logits": Sequence(Value("float32"), length=len(CLASSES)),
        "blind_region": Value("bool"),
    }
    return Features({name: features[name] for name in columns})
