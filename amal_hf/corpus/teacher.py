"""A real teacher with a real blind spot: it was trained before the Lark existed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from amal_hf.corpus.writer import Message


def train_teacher(messages: Sequence[Message]) -> Pipeline:
    """TF-IDF and logistic regression, fitted to messages with their true classes.

    Args:
        messages: clean messages; every class must be among them.

    Returns:
        A fitted scikit-learn pipeline over texts.
    """
    # a weak penalty: a teacher that is sure of itself also where it knows nothing
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    teacher = make_pipeline(words, LogisticRegression(C=30.0, max_iter=300, tol=2e-3))
    return teacher.fit([m.text for m in messages], [m.label for m in messages])


def logits(teacher: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """The teacher's logits, float32 `[N, C]`, in nats."""
    return teacher.decision_function(texts).astype(np.float32)
