"""CAGE fitted, and CAGE trained beside a student: against hand arithmetic, a known model, and one joint backward."""

from __future__ import annotations

import gzip
import json
import warnings
from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amal_hf import CrossEntropy, Outputs
from amal_hf.labeling.cage import CAGE
from amal_hf.labeling.checks import VoteWarning
from amal_hf.labeling.joint import STATE_FILE, JointCAGE
from amal_hf.losses import (
    Agreement,
    Entropy,
    LossStack,
    PosteriorLabel,
    Unlabelled,
    labelled_likelihood,
    posterior_divergence,
    quality_guide,
    vote_likelihood,
)

DATA = Path(__file__).parents[3] / "shared" / "data"


def rows(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# e^θ is (2, 3, 1/2) for class 0 and (1/2, 1, 4) for class 1; Z = 3·4·3/2 + 3/2·2·5 = 33
BY_HAND = CAGE(rows([[2.0, 3.0, 0.5], [0.5, 1.0, 4.0]]).log(), torch.arange(3), torch.tensor([0, 0, 1]), 3)
VOTES = torch.tensor([[0, -1, 1], [0, 0, -1], [-1, -1, -1], [-1, 0, 1]])


# ---- the model ----


def test_joint_and_posterior_by_hand():
    log_joint = rows([[1.0, 2.0], [6.0, 0.5], [1.0, 1.0], [1.5, 4.0]]).log() - log(33)
    torch.testing.assert_close(BY_HAND.log_joint(VOTES), log_joint, rtol=1e-12, atol=1e-12)
    posterior = rows([[1 / 3, 2 / 3], [12 / 13, 1 / 13], [1 / 2, 1 / 2], [3 / 11, 8 / 11]])
    torch.testing.assert_close(BY_HAND.posterior(VOTES), posterior, rtol=1e-12, atol=1e-12)


def test_rows_keep_their_order():
    order = torch.tensor([3, 0, 2, 1])
    assert torch.equal(BY_HAND.posterior(VOTES[order]), BY_HAND.posterior(VOTES)[order])


def read_only(votes: Tensor) -> np.ndarray:
    array = votes.numpy().copy()
    array.setflags(write=False)  # as pyarrow gives it
    return array


@pytest.mark.parametrize("kind", [Tensor.tolist, Tensor.numpy, read_only, lambda v: v.to(torch.int8)])
@pytest.mark.filterwarnings("error")
def test_votes_may_be_lists_arrays_or_tensors(kind):
    assert torch.equal(CAGE.fit(kind(VOTES), 2).theta, CAGE.fit(VOTES, 2).theta)
    assert torch.equal(BY_HAND.posterior(kind(VOTES)), BY_HAND.posterior(VOTES))


def test_a_function_of_several_classes_is_an_indicator_for_each():
    cage = CAGE.fit([[0, 2], [1, 2], [0, -1], [1, 2]], num_classes=3)
    assert list(zip(cage.functions.tolist(), cage.classes.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2)]
    assert cage.theta.shape == (3, 3) and cage.theta.dtype == torch.float64
    # a vote never seen in the fit says nothing
    assert cage.posterior([[2, -1]]).tolist() == cage.posterior([[-1, -1]]).tolist() == [[1 / 3] * 3]


def test_refuses():
    with pytest.raises(ValueError, match=r"`votes`: expected \[rows, 3\], one column for each .* found \[1, 2\]"):
        BY_HAND.posterior([[0, 1]])
    with pytest.raises(ValueError, match=r"`votes`: expected votes from -1 \(abstain\) to 1, found 0 to 2"):
        BY_HAND.posterior([[0, 2, 0]])
    with pytest.raises(ValueError, match=r"`votes`: expected -1 \(abstain\) to 1, found that function '1' votes 2"):
        CAGE.fit([[0, 2]], num_classes=2)
    with pytest.warns(VoteWarning), pytest.raises(ValueError, match="`votes`: expected a vote on some row"):
        CAGE.fit([[-1, -1]], num_classes=2)
    for gold in ([0], [0.0, 1.0], [[0], [1]]):
        with pytest.raises(ValueError, match="`gold`: expected 2 whole numbers, the class of each row"):
            CAGE.fit([[0, 1], [1, 0]], 2, gold=gold)
    with pytest.raises(ValueError, match="`gold`: expected classes 0 to 1, or -100; found 2"):
        CAGE.fit([[0, 1], [1, 0]], 2, gold=[0, 2])
    with pytest.raises(ValueError, match="`quality`: expected one number, or 2, one a function; found"):
        CAGE.fit([[0, 1], [1, 0]], 2, quality=[0.9])
    with pytest.raises(ValueError, match=r"`quality`: expected a number from 0.0 to 1.0, found 1.2"):
        CAGE.fit([[0, 1], [1, 0]], 2, quality=[0.9, 1.2])


# ---- the fit ----


def known_model(num_classes: int = 3, seed: int = 0) -> CAGE:
    """Two to four functions a class, precise to a different degree, all classes about as likely."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(9) % num_classes
    theta = -2.5 - torch.rand(num_classes, 9, generator=draw, dtype=torch.float64)
    theta[classes, torch.arange(9)] = torch.rand(9, generator=draw, dtype=torch.float64)
    return CAGE(theta, torch.arange(9), classes, 9)


def sample(cage: CAGE, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Classes `[N]` and votes `[N, J]` drawn from the model: y ~ Π(1 + e^θ), then l_j ~ σ(θ_yj)."""
    draw = torch.Generator().manual_seed(seed)
    prior = (1 + cage.theta.exp()).prod(1)
    y = torch.multinomial(prior / prior.sum(), n, replacement=True, generator=draw)
    fires = torch.rand(n, len(cage.classes), generator=draw) < cage.theta.sigmoid()[y]
    return y, torch.where(fires, cage.classes, -1)


def distance(a: Tensor, b: Tensor) -> float:
    """Mean total variation between posteriors `[N, C]`."""
    return (a - b).abs().sum(1).mean().item() / 2


def test_a_known_model_is_recovered():
    truth = known_model()
    _, votes = sample(truth, 20_000)
    exact = CAGE.fit(votes, 3, quality=None, anchor=0.0)
    guided = CAGE.fit(votes, 3)
    uninformed = torch.full((len(votes), 3), 1 / 3, dtype=torch.float64)
    assert distance(truth.posterior(votes), uninformed) > 0.3
    assert distance(truth.posterior(votes), exact.posterior(votes)) < 0.01
    assert distance(truth.posterior(votes), guided.posterior(votes)) < 0.03
    # no model explains the votes better than the maximum of the likelihood
    explained = {name: vote_likelihood(c.log_joint(votes)).mean() for name, c in (("truth", truth), ("exact", exact))}
    assert explained["exact"] <= explained["truth"]


def test_the_fit_is_where_the_objective_is_flat():
    _, votes = sample(known_model(), 500)
    gold = torch.full((500,), -100)
    gold[:20] = 1
    cage = CAGE.fit(votes, 3, gold=gold, anchor=0.0, quality=0.8)
    theta = cage.theta.clone().requires_grad_()
    log_joint = CAGE(theta, cage.functions, cage.classes, cage.num_functions).log_joint(votes)
    objective = (
        vote_likelihood(log_joint).mean()
        + labelled_likelihood(log_joint, gold)[:20].mean()
        + quality_guide(theta, cage.classes, torch.full((9,), 0.8, dtype=torch.float64)).sum()
    )
    (gradient,) = torch.autograd.grad(objective, theta)
    assert gradient.abs().max() < 1e-4


def test_shuffled_rows_give_the_same_model():
    _, votes = sample(known_model(), 300)
    gold = torch.where(torch.arange(300) < 30, torch.arange(300) % 3, -100)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    first, second = CAGE.fit(votes, 3, gold=gold), CAGE.fit(votes[order], 3, gold=gold[order])
    torch.testing.assert_close(first.posterior(votes)[order], second.posterior(votes[order]), rtol=0, atol=1e-5)
    misplaced = CAGE.fit(votes[order], 3, gold=gold)
    assert distance(misplaced.posterior(votes), first.posterior(votes)) > 1e-3


def test_labelled_rows_pull_the_posterior():
    """One function says 0 of what is 1: gold tells, votes cannot."""
    votes = torch.tensor([[0, -1], [-1, 1]] * 50)
    wrong = CAGE.fit(votes, 2, quality=None)
    told = CAGE.fit(votes, 2, gold=torch.tensor([1, -100] * 50), quality=None)
    assert wrong.posterior([[0, -1]])[0, 0] > 0.5 > told.posterior([[0, -1]])[0, 0]


def test_quality_moves_the_posterior():
    _, votes = sample(known_model(), 2000)
    high, low = (CAGE.fit(votes, 3, quality=[q] + [0.8] * 8) for q in (0.95, 0.5))
    alone = [[0] + [-1] * 8]
    assert high.posterior(alone)[0, 0] > low.posterior(alone)[0, 0] + 0.05


def test_the_seed_decides_alone():
    _, votes = sample(known_model(), 300)
    state = torch.get_rng_state()
    first, second = CAGE.fit(votes, 3, seed=3), CAGE.fit(votes, 3, seed=3)
    assert torch.equal(first.theta, second.theta) and torch.equal(torch.get_rng_state(), state)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as lines:
        read = [json.loads(line) for line in lines]
    return np.array([row["weak_labels"] for row in read]), np.array([row["label"] for row in read])


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside this checkout")
@pytest.mark.parametrize("name", ["youtube", "trec", "sms"])
def test_real_votes_are_weighted_at_least_as_well_as_counted(name):
    votes, label = read(DATA / name / "train.jsonl")
    num_classes = int(label.max()) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = CAGE.fit(votes, num_classes).posterior(votes).numpy()
    counts = (votes[:, :, None] == np.arange(num_classes)).sum(1)

    def accuracy(score: np.ndarray) -> float:
        best = np.isclose(score, score.max(1, keepdims=True))  # ties share
        return float((best / best.sum(1, keepdims=True))[np.arange(len(label)), label].mean())

    assert accuracy(posterior) >= accuracy(counts)
    silent = (votes < 0).all(1)
    assert silent.any() and np.allclose(posterior[silent], 1 / num_classes)


# ---- beside a student ----

CLEAN_LABEL = torch.tensor([0, -100, 1, -100])
FEATURES = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


AT_START = SimpleNamespace(global_step=0)


def student() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 2).double()


def test_one_step_is_that_of_the_joint_objective():
    """L1..L7 in one graph, one backward for student and θ: SPEAR's step. Ours takes it in two halves."""
    model, theta = student(), BY_HAND.theta.clone().requires_grad_()
    cage, logits = CAGE(theta, BY_HAND.functions, BY_HAND.classes, 3), model(FEATURES)
    log_joint, log_f = cage.log_joint(VOTES), logits.log_softmax(1)
    covered, known = torch.tensor([True, True, False, True]), CLEAN_LABEL >= 0
    best = log_joint.argmax(1)
    parts = [
        -log_f[0, 0] / 2 - log_f[2, 1] / 2,  # L1
        -(log_f.exp() * log_f).sum(1)[~known].mean(),  # L2
        -log_f.gather(1, best[:, None])[~known].mean(),  # L3
        labelled_likelihood(log_joint, CLEAN_LABEL)[known].mean(),  # L4
        vote_likelihood(log_joint)[~known].mean(),  # L5
        posterior_divergence(logits, log_joint)[covered].mean(),  # L6
        quality_guide(theta, cage.classes, rows([0.9] * 3)).sum(),  # L7
    ]
    joint_gradients = torch.autograd.grad(sum(parts), [theta, *model.parameters()])

    joint = JointCAGE(BY_HAND)
    joint.on_train_begin(None, AT_START, None)
    stack = LossStack(
        {
            "L1": CrossEntropy("gold"),
            "L2": Unlabelled(Entropy()),
            "L3": Unlabelled(joint.source(PosteriorLabel("cage"))),
            "L6": joint.source(Agreement("cage")),
        },
        {},
    )
    batch = {"gold": CLEAN_LABEL, "weak_labels": VOTES}
    losses, mask = stack(Outputs(logits=model(FEATURES)), batch), stack.mask(batch)
    student_gradients = torch.autograd.grad((losses.sum(0) / mask.sum(0)).sum(), list(model.parameters()))
    joint.on_optimizer_step(None, SimpleNamespace(), None)
    for found, expected in zip([joint.theta.grad, *student_gradients], joint_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # Adam's first step is lr · sign
    moved = joint.cage.theta.detach() - BY_HAND.theta
    torch.testing.assert_close(moved, -0.01 * joint_gradients[0].sign(), rtol=1e-4, atol=1e-6)


def test_only_the_training_forward_of_a_batch_updates():
    joint, model, batch = JointCAGE(BY_HAND), student(), {"gold": CLEAN_LABEL, "weak_labels": VOTES}
    source = joint.source(Agreement("cage"))
    joint.on_train_begin(None, AT_START, None)
    source(Outputs(logits=model(FEATURES).detach()), batch)  # no gradient: no training
    assert not joint.rows
    logits = model(FEATURES)
    source(Outputs(logits=logits), batch)
    source(Outputs(logits=logits + 1), batch)  # a lookahead's
    source(Outputs(logits=logits), {name: column.clone() for name, column in batch.items()})  # another micro-batch
    assert [torch.equal(heard, logits) for _, _, heard in joint.rows] == [True, True]
    assert source.columns == ("weak_labels", "gold")


def test_the_given_model_stays_as_it_is_and_a_run_starts_from_it():
    joint, before = JointCAGE(BY_HAND), BY_HAND.theta.clone()
    batch = {"gold": CLEAN_LABEL, "weak_labels": VOTES}
    joint.on_train_begin(None, AT_START, None)
    joint.source(Agreement("cage"))(Outputs(logits=student()(FEATURES)), batch)
    joint.on_optimizer_step(None, SimpleNamespace(), None)
    assert torch.equal(BY_HAND.theta, before) and not torch.equal(joint.cage.theta, before)
    joint.on_train_begin(None, AT_START, None)
    assert torch.equal(joint.cage.theta, before)


def test_a_source_without_its_callback_is_refused():
    joint, batch = JointCAGE(BY_HAND), {"gold": CLEAN_LABEL, "weak_labels": VOTES}
    with pytest.raises(ValueError, match="`callbacks`: expected the JointCAGE whose sources are trained on"):
        joint.source(Agreement("cage"))(Outputs(logits=student()(FEATURES)), batch)


def test_without_gold_or_guide():
    joint = JointCAGE(BY_HAND, gold=None, quality=None)
    assert joint.source(Agreement("cage")).columns == ("weak_labels",)
    none = torch.full((4,), -100)
    expected = vote_likelihood(BY_HAND.log_joint(VOTES)).mean()
    expected += posterior_divergence(torch.zeros(4, 2), BY_HAND.log_joint(VOTES))[[0, 1, 3]].mean()
    torch.testing.assert_close(joint.objective(VOTES, none, torch.zeros(4, 2)).detach(), expected)


def test_resumed_is_uninterrupted(tmp_path):
    batch, model = {"gold": CLEAN_LABEL, "weak_labels": VOTES}, student()
    args = SimpleNamespace(output_dir=str(tmp_path))

    def steps(joint: JointCAGE, count: int) -> None:
        for _ in range(count):
            fresh = {name: column.clone() for name, column in batch.items()}
            joint.source(Agreement("cage"))(Outputs(logits=model(FEATURES)), fresh)
            joint.on_optimizer_step(args, SimpleNamespace(), None)

    whole, first, second = JointCAGE(BY_HAND), JointCAGE(BY_HAND), JointCAGE(BY_HAND)
    for each in (whole, first):
        each.on_train_begin(args, AT_START, None)
    steps(whole, 5)
    steps(first, 3)
    first.on_save(args, SimpleNamespace(global_step=3, is_world_process_zero=True), None)
    assert (tmp_path / "checkpoint-3" / STATE_FILE).is_file()
    second.on_train_begin(args, SimpleNamespace(global_step=3), None)
    steps(second, 2)
    assert torch.equal(whole.cage.theta, second.cage.theta)
