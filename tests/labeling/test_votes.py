"""Votes: what they must be, Snorkel's figures of them, and one distribution from all of them."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from snorkel.labeling import LFAnalysis
from snorkel.labeling.model import LabelModel

from amal_hf import CrossEntropy, Outputs
from amal_hf.labeling import VoteWarning, analyze, check_votes, label_model, majority_vote, vote_matrix
from amal_hf.labeling import analysis as analysis_module
from amal_hf.labeling.label_models import accuracy, fit
from amal_hf.losses import Agreement

NAMES = ["a", "b", "c", "d"]
MODELS = ["majority", "snorkel", "cage"]


def planted(rows: int = 600, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Votes `[N, 4]` of functions that are right more often than not, and the truth `[N]`."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    votes = np.where(rng.random((rows, 4)) < 0.75, truth[:, None], rng.integers(0, classes, (rows, 4)))
    votes[rng.random((rows, 4)) < 0.4] = -1
    return votes, truth


# ---- checks ----


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda votes: votes.tolist()])
def test_good_votes_pass_in_silence(kind):
    votes, _ = planted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (check_votes(kind(votes), 3, NAMES, rows=600) == votes).all()


@pytest.mark.parametrize(
    ("votes", "told"),
    [
        ([[0, 1, 2, 3]], "function 'd' votes 3 on row 0"),
        ([[0, 0, 0, 0], [0, -2, 0, 0]], "function 'b' votes -2 on row 1"),
        ([[0, 1, 2]], "expected 4 votes in every row.*found 3"),
        ([[0, 1, 2, -1], [0, 1]], "rows of 2 to 4 votes"),
        ([[0.0, 1.0, 2.0, -1.0]], "float64"),
        ([0, 1, 2, -1], r"shape \[4\]"),
        ([[0, 1, 2, -1]] * 3, "votes on 2 rows.*found 3"),
    ],
)
def test_bad_votes_are_refused_with_function_and_row(votes, told):
    with pytest.raises(ValueError, match=f"`votes.npy`: .*{told}"):
        check_votes(votes, 3, NAMES, rows=len(votes) if len(votes) < 3 else 2, where="votes.npy")


def test_idle_functions_and_missing_classes_are_warned_of():
    with pytest.warns(VoteWarning) as told:
        check_votes([[0, -1], [0, -1]], 2, ["loud", "mute"])
    assert [str(w.message).split(":")[1].strip() for w in told] == [
        "function(s) ['mute'] never vote",
        "no function votes for class(es) ['1']",
    ]


@pytest.mark.parametrize("kind", ["int8", "int64"])
def test_a_column_of_votes_is_a_matrix(kind):
    votes, _ = planted(50)
    dataset = Dataset.from_dict({"weak_labels": votes.astype(kind).tolist(), "text": ["x"] * 50})
    assert (vote_matrix(dataset.select(range(7, 50))) == votes[7:]).all()


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([[0, 1], [0]], "found 1 to 2"),
        ([[0, 1], None], "1 missing"),
        ([[0, None], [0, 1]], "1 missing"),
        (["a", "b"], "found string"),
        ([[0.5], [1.0]], "found list"),
    ],
)
def test_a_column_of_something_else_is_refused(column, told):
    with pytest.raises(ValueError, match=f"`weak_labels`: .*{told}"):
        vote_matrix(Dataset.from_dict({"weak_labels": column}))


# ---- Snorkel's table ----


@pytest.mark.filterwarnings("ignore::FutureWarning")  # scipy's, inside snorkel 0.10
@pytest.mark.parametrize("chunk", [7, 10_000])
def test_the_table_in_chunks_is_snorkels_of_the_whole(monkeypatch, chunk):
    monkeypatch.setattr(analysis_module, "CHUNK_ROWS", chunk)
    votes, truth = planted(100)
    theirs = LFAnalysis(votes, [SimpleNamespace(name=n) for n in NAMES]).lf_summary(truth)
    pd.testing.assert_frame_equal(analyze(votes, NAMES, truth), theirs, check_dtype=False)


def test_accuracy_is_of_labelled_rows_and_of_functions_that_vote():
    votes = np.array([[0, -1], [1, -1], [0, -1]])
    table = analyze(votes, ["said", "mute"], gold=np.array([0, 0, -1]))
    assert table["Emp. Acc."]["said"] == 0.5 and np.isnan(table["Emp. Acc."]["mute"])
    assert table["Coverage"].tolist() == [1.0, 0.0] and table["Polarity"].tolist() == [[0, 1], []]
    assert "Correct" not in analyze(votes, ["said", "mute"]).columns
    assert "Correct" not in analyze(votes, ["said", "mute"], gold=np.full(3, -1)).columns


# ---- label models ----


def test_majority_shares_ties_and_abstains_on_uncovered_rows():
    said = majority_vote(np.array([[2, 0, 2, -1], [0, 1, -1, -1], [-1] * 4], np.int8), 3)
    np.testing.assert_array_equal(said, np.array([[0, 0, 1], [0.5, 0.5, 0], [np.nan] * 3], np.float32))


def test_snorkels_posterior_is_snorkels_own():
    votes, _ = planted()
    votes[:20] = -1
    covered = votes[20:][(votes[20:] >= 0).any(1)]
    theirs = LabelModel(cardinality=3, verbose=False)
    theirs.fit(covered, seed=5, progress_bar=False)
    ours = label_model(votes, 3, seed=5)
    np.testing.assert_allclose(ours[(votes >= 0).any(1)], theirs.predict_proba(covered), rtol=1e-6)
    assert np.isnan(ours[:20]).all()


@pytest.mark.parametrize("name", MODELS)
def test_posteriors_are_distributions_right_more_often_than_the_best_function(name):
    votes, truth = planted()
    said = fit(name, votes, 3, seed=0)(votes)
    covered = (votes >= 0).any(1)
    assert said.shape == (600, 3) and said.dtype == np.float32 and np.isnan(said[~covered]).all()
    np.testing.assert_allclose(said[covered].sum(1), 1, rtol=1e-5)
    right, judged = accuracy(said, truth)
    assert judged == covered.sum()
    single = max((votes[:, j] == truth)[votes[:, j] >= 0].mean() for j in range(4))
    assert right / judged > single - 0.03


@pytest.mark.parametrize("name", ["snorkel", "cage"])
def test_a_seed_gives_one_posterior_and_leaves_no_trace(name):
    votes, _ = planted(200)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = (fit(name, votes, 3, seed=3)(votes) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


@pytest.mark.parametrize("loss", [CrossEntropy, Agreement])
def test_losses_are_zero_on_uncovered_rows(loss):
    batch = {"majority": torch.from_numpy(majority_vote(np.array([[0, -1], [-1, -1]]), 2))}
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    rows = loss("majority")(Outputs(logits=logits), batch)
    rows.sum().backward()
    assert loss("majority").mask(batch).tolist() == [True, False]
    assert rows[0] > 0 and rows[1] == 0 and (logits.grad[1] == 0).all()


@pytest.mark.parametrize(
    ("name", "votes", "told"),
    [
        ("snorkel", [[0, 1]], "at least 3 labeling functions for 'snorkel', found 2"),
        ("snorkel", [[-1, -1, -1]], "expected a vote on some row"),
        ("flying", [[0, 1, 1]], "expected one of"),
    ],
)
def test_label_models_that_cannot_be(name, votes, told):
    with pytest.raises(ValueError, match=told):
        fit(name, np.array(votes), 2)


def test_a_tie_counts_by_chance():
    posterior = np.array([[0.5, 0.5], [1, 0], [np.nan, np.nan], [0, 1]], np.float32)
    assert accuracy(posterior, np.array([1, 0, 0, -1])) == (1.5, 2)
