"""Evidence: leave-one-out is what it says, votes are counted by hand, weights follow who is right."""

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from amal_hf.denoising import (
    CLEAN_LABEL,
    LOG_POSTERIOR,
    PROBE,
    NaiveBayesVotes,
    Probe,
    clean_share,
    with_clean_rows,
    without_clean_rows,
)
from amal_hf.denoising.experts import PRECISION, ROWS, class_shares, fit_weights


def clusters(rows: int, seed: int = 0, width: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    return torch.eye(classes, width)[labels] + 0.7 * torch.randn(rows, width, generator=g), labels


def test_probe_leaves_out_what_it_says() -> None:
    """A clean row's own opinion is that of a probe that never saw the row, up to the class shares it changes."""
    features, labels = clusters(30)
    probe = Probe.fit(features, labels, 3)
    i, others = 4, torch.arange(30) != 4
    alone = Probe.fit(features[others], labels[others], 3)
    direction = alone(features[i : i + 1])[0] / alone.scale
    oof_log_odds = probe.oof_log_odds[i] / probe.scale
    assert torch.nn.functional.cosine_similarity(direction, oof_log_odds, dim=0) > 0.99
    seen = probe(features[i : i + 1])[0] / probe.scale
    assert (oof_log_odds - direction).norm() < 0.3 * (seen - direction).norm()


def test_precision_by_hand() -> None:
    """One function that votes 0 on three clean rows, two of them of class 0, one of class 1; no class is rarer."""
    votes = torch.tensor([[0], [0], [0], [-1]])
    labels = torch.tensor([0, 0, 1, 1])
    precision = NaiveBayesVotes.count(votes, labels, num_classes=2)
    right = (2 + PRECISION * ROWS) / (3 + ROWS)  # its overall rate, shrunk
    zero, one = (2 + ROWS * right) / (3 + ROWS), (1 + ROWS * (1 - right)) / (3 + ROWS)
    expected = torch.tensor([math.log(2 * zero), math.log(2 * one)], dtype=torch.double)
    torch.testing.assert_close(precision(torch.tensor([[0]]))[0], expected)
    assert precision(torch.tensor([[-1]])).tolist() == [[0, 0]]  # abstaining says nothing
    right = (1 + PRECISION * ROWS) / (2 + ROWS)  # without the first row
    zero = (1 + ROWS * right) / (2 + ROWS)
    torch.testing.assert_close(precision.oof_log_odds[0, 0], torch.tensor(math.log(2 * zero), dtype=torch.double))
    assert precision.oof_log_odds[3].tolist() == [0, 0]


def test_precision_of_a_function_that_votes_one_class_only() -> None:
    """That it fires is evidence for the class, also where clean rows have no votes at all."""
    precision = NaiveBayesVotes.count(torch.full((3, 2), -1), torch.tensor([0, 1, 2]), num_classes=3)
    said = precision(torch.tensor([[2, -1]]))[0]
    assert said.argmax() == 2 and said[0] == said[1] < 0


def test_votes_in_opposition_cancel() -> None:
    precision = NaiveBayesVotes.count(torch.full((2, 2), -1), torch.tensor([0, 1]), num_classes=2)
    torch.testing.assert_close(precision(torch.tensor([[0, 1]])).softmax(1), torch.full((1, 2), 0.5).double())


def test_weights_follow_who_is_right() -> None:
    """An expert that knows is believed, one that guesses is not, one that is always wrong gets 0."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    truth = 2.0 * torch.nn.functional.one_hot(labels, 2).double() - 1
    said = [truth, torch.randn(200, 2, generator=g).double(), -truth]
    knows, guesses, wrong = fit_weights(said, labels, [1.0, 1.0, 1.0]).tolist()
    assert knows > 1.5 and guesses < knows / 4 and wrong == 0


def test_two_rows_say_little_about_an_expert() -> None:
    """Both say the same of two rows, so that what was believed before decides."""
    said = 0.1 * torch.tensor([[1.0, -1], [-1, 1]]).double()
    doubted, believed = fit_weights([said, said], torch.tensor([0, 1]), [0.0, 1.0]).tolist()
    assert doubted < 0.2 and 0.9 < believed < 1.2


def test_class_shares_find_the_rare_class() -> None:
    """EM from equal shares, then half-way: 10 % of rows are of class 1, the opinions are sharp and not biased."""
    truth = torch.arange(1000) % 10 == 0
    log_odds = torch.where(truth[:, None], torch.tensor([0.0, 9.0]), torch.tensor([9.0, 0.0])).double()
    shares = class_shares(log_odds, rounds=50, smoothing=0.0)
    assert shares.sum() == pytest.approx(1)
    assert shares[1] / shares[0] == pytest.approx((1 / 9) ** 0.5, rel=0.01)


CLASS = ClassLabel(names=["no", "yes"])
COLUMNS = Features({"text": Value("string"), "weak_labels": List(Value("int64")), LOG_POSTERIOR: List(Value("float32")),
                    PROBE: List(Value("float32"))})  # fmt: skip


def rows(count: int) -> Dataset:
    return Dataset.from_dict(
        {"text": [f"row {i}" for i in range(count)], "weak_labels": [[0, -1]] * count,
         LOG_POSTERIOR: [[-0.1, -2.4]] * count, PROBE: [[0.9, 0.1]] * count}, features=COLUMNS,
    )  # fmt: skip


def test_gold_rows_are_their_share_and_certain() -> None:
    clean = rows(4).add_column("label", [0, 1, 0, 1]).cast_column("label", CLASS)
    joined = with_clean_rows(rows(60), clean, torch.tensor(clean["label"][:]), 2, share=0.25)
    added = np.asarray(joined[CLEAN_LABEL][:])
    assert (added >= 0).mean() == pytest.approx(0.25)
    assert (added[:60] == -100).all() and "label" not in joined.column_names
    certain = np.asarray(joined[LOG_POSTERIOR][:])[60:]
    np.testing.assert_allclose(np.exp(certain).sum(1), 1, rtol=1e-5)
    assert (certain.argmax(1) == added[60:]).all() and np.exp(certain).max(1).min() > 0.999
    assert without_clean_rows(joined).num_rows == 60 and without_clean_rows(rows(3)).num_rows == 3


@pytest.mark.parametrize(("clean", "seen", "share"), [(60, 7680, 0.25), (384, 7680, 0.5), (5000, 7680, 0.75)])
def test_gold_share_is_about_ten_visits_beside_votes(clean: int, seen: int, share: float) -> None:
    assert clean_share(clean, 900, seen, votes_only=True) == share


def test_beside_labels_and_teachers_a_clean_row_is_a_row_like_any_other() -> None:
    rows = Dataset.from_dict({"row_id": range(40), LOG_POSTERIOR: [[0.0, 0.0]] * 40})
    clean = rows.select(range(10)).add_column("label", [0, 1] * 5)
    clean = clean.cast_column("label", ClassLabel(names=["a", "b"]))
    both = with_clean_rows(rows, clean, torch.tensor(clean["label"][:]), 2, clean_share(10, 40))
    assert len(both) == 50 and (np.asarray(both[CLEAN_LABEL][:]) >= 0).sum() == 10
