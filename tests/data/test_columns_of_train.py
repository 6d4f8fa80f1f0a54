"""In Python, too, an index means one class: in train, clean and evaluation rows and in the model."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset
from planted import NAMES, make_rows, make_student


def turned(rows: Dataset) -> Dataset:
    """The same labels in another order of classes."""
    order = NAMES[::-1]
    names = rows.features["label"].int2str(rows["label"][:])
    return rows.remove_columns("label").add_column("label", [order.index(n) for n in names]).cast_column(
        "label", ClassLabel(names=order)
    )  # fmt: skip


@pytest.mark.parametrize("which", ["train_dataset", "clean_dataset", "eval_dataset"])
def test_classes_in_another_order(which, build):
    given = {
        "train_dataset": make_rows(18),
        "clean_dataset": make_rows(9, seed=1),
        "eval_dataset": make_rows(9, seed=2),
    }
    build(**given)
    given[which] = turned(given[which])
    with pytest.raises(ValueError, match=f"`classes`: expected the same classes in the same order.*{which}"):
        build(**given)


def test_a_model_of_another_order(build):
    model = make_student()
    model.config.id2label = dict(enumerate(NAMES[::-1]))
    with pytest.raises(ValueError, match="`model`: expected its classes in the data's order"):
        build(model=model)
