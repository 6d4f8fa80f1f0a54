"""SPEAR's seven losses against arithmetic by hand: three functions, two classes, e^θ rational.

e^θ is (2, 3, 1/2) for class 0 and (1/2, 1, 4) for class 1, so
Z = (1+2)(1+3)(1+1/2) + (1+1/2)(1+1)(1+4) = 18 + 15 = 33. Functions 0 and 1 vote for class 0, function 2 for class 1.
"""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from amal_hf import CrossEntropy, Outputs
from amal_hf.losses import (
    Agreement,
    Entropy,
    FromVotes,
    LossStack,
    PosteriorLabel,
    Unlabelled,
    cage_log_joint,
    labelled_likelihood,
    posterior_divergence,
    quality_guide,
    vote_likelihood,
)


def rows(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


THETA = rows([[2.0, 3.0, 0.5], [0.5, 1.0, 4.0]]).log()
CLASSES = torch.tensor([0, 0, 1])
FIRES = rows([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
# Π e^θ over what fires, by class: (2·1/2, 1/2·4), (2·3, 1/2·1), (1, 1), (3·1/2, 1·4)
JOINT = rows([[1 / 33, 2 / 33], [6 / 33, 0.5 / 33], [1 / 33, 1 / 33], [1.5 / 33, 4 / 33]])
POSTERIOR = rows([[1 / 3, 2 / 3], [12 / 13, 1 / 13], [1 / 2, 1 / 2], [3 / 11, 8 / 11]])
# student: odds 1:3, 3:1, 1:1, e:1
LOGITS = rows([[0.0, log(3)], [log(3), 0.0], [0.0, 0.0], [1.0, 0.0]])
CLEAN_LABEL = torch.tensor([0, -100, 1, 1])


def close(found: Tensor, expected) -> None:
    torch.testing.assert_close(found, rows(expected), rtol=1e-12, atol=1e-12)


# ---- CAGE's own: L4, L5, L6, L7 ----


def test_the_joint_is_a_distribution_over_classes_and_votes():
    close(cage_log_joint(THETA, FIRES).exp(), JOINT.tolist())
    every = rows([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    assert abs(cage_log_joint(THETA, every).exp().sum().item() - 1) < 1e-12


def test_the_joint_survives_where_z_overflows():
    """Seventy functions of θ = 20: Z is beyond float64, its logarithm is not."""
    found = cage_log_joint(torch.full((2, 70), 20.0, dtype=torch.float64), torch.ones(1, 70, dtype=torch.float64))
    close(found, [[-log(2) - 70 * log(1 + exp(-20.0))] * 2])


def test_l4_is_the_class_given_the_votes():
    close(labelled_likelihood(JOINT.log(), CLEAN_LABEL), [-log(1 / 3), 0.0, -log(1 / 2), -log(8 / 11)])


def test_l5_is_the_votes_whatever_the_class():
    close(vote_likelihood(JOINT.log()), [-log(3 / 33), -log(6.5 / 33), -log(2 / 33), -log(5.5 / 33)])


def test_l4_and_l5_make_the_complete_likelihood():
    both = labelled_likelihood(JOINT.log(), CLEAN_LABEL) + vote_likelihood(JOINT.log())
    close(both[[0, 2, 3]], [-log(1 / 33), -log(1 / 33), -log(4 / 33)])


KL = [
    1 / 4 * log((1 / 4) / (1 / 3)) + 3 / 4 * log((3 / 4) / (2 / 3)),
    3 / 4 * log((3 / 4) / (12 / 13)) + 1 / 4 * log((1 / 4) / (1 / 13)),
    0.0,
    exp(1) / (1 + exp(1)) * log(exp(1) / (1 + exp(1)) / (3 / 11)) + 1 / (1 + exp(1)) * log(1 / (1 + exp(1)) / (8 / 11)),
]
REVERSE_0 = 1 / 3 * log((1 / 3) / (1 / 4)) + 2 / 3 * log((2 / 3) / (3 / 4))


def test_l6_has_the_student_first():
    found = posterior_divergence(LOGITS, JOINT.log())
    close(found, KL)
    assert min(KL) >= 0 and abs(KL[0] - REVERSE_0) > 1e-4  # the example tells the directions apart


def test_l6_of_the_student_is_agreement():
    found = Agreement("cage")(Outputs(logits=LOGITS), {"cage": POSTERIOR})
    close(found, KL)


def test_l7_is_the_precision_each_function_should_have():
    # P(y, l_j = 1) ∝ Π_i (1 + e^θ) · e^θ/(1 + e^θ), by class:
    # j=0: 18·2/3 = 12, 15·1/3 = 5; j=1: 18·3/4 = 13.5, 15·1/2 = 7.5; j=2: 18·1/3 = 6, 15·4/5 = 12
    p = [12 / 17, 13.5 / 21, 12 / 18]
    a = [0.9, 0.8, 1.0]
    expected = [-(0.9 * log(p[0]) + 0.1 * log(1 - p[0])), -(0.8 * log(p[1]) + 0.2 * log(1 - p[1])), -log(p[2])]
    close(quality_guide(THETA, CLASSES, rows(a)), expected)


def test_l7_counts_every_class_but_its_own_as_wrong():
    theta = rows([[2.0], [1.0], [0.5]]).log()  # P(y | l = 1) = (4, 2, 1)/7
    close(quality_guide(theta, torch.tensor([1]), rows([0.9])), [-(0.9 * log(2 / 7) + 0.1 * log(5 / 7))])


def test_signs():
    """Each falls as the model comes to say what is true."""
    right = rows([[2.0, 2.0, -2.0, -2.0], [-2.0, -2.0, 2.0, 2.0]])
    fires, gold = rows([[1, 1, 0, 0], [0, 0, 1, 1]]), torch.tensor([0, 1])
    before, after = cage_log_joint(0 * right, fires), cage_log_joint(right, fires)
    student = rows([[8.0, 0.0], [0.0, 8.0]])
    for loss in (
        lambda joint: labelled_likelihood(joint, gold),
        vote_likelihood,
        lambda joint: posterior_divergence(student, joint),
    ):
        assert (loss(after) < loss(before)).all() and (loss(after) > -1e-12).all()
    classes, quality = torch.tensor([0, 0, 1, 1]), rows([0.95] * 4)
    assert (quality_guide(right, classes, quality) < quality_guide(0 * right, classes, quality)).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda theta, logits: labelled_likelihood(cage_log_joint(theta, FIRES), CLEAN_LABEL),
        lambda theta, logits: vote_likelihood(cage_log_joint(theta, FIRES)),
        lambda theta, logits: posterior_divergence(logits, cage_log_joint(theta, FIRES)),
        lambda theta, logits: quality_guide(theta, CLASSES, rows([0.9, 0.8, 1.0])) + 0 * logits.sum(),
    ],
    ids=["L4", "L5", "L6", "L7"],
)
def test_gradients(loss):
    theta, logits = THETA.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (theta, logits))


def test_shuffled_rows_shuffle_the_losses():
    order = torch.tensor([2, 0, 3, 1])
    joint = cage_log_joint(THETA, FIRES)
    for loss in (
        lambda i: labelled_likelihood(cage_log_joint(THETA, FIRES[i]), CLEAN_LABEL[i]),
        lambda i: vote_likelihood(cage_log_joint(THETA, FIRES[i])),
        lambda i: posterior_divergence(LOGITS[i], cage_log_joint(THETA, FIRES[i])),
    ):
        torch.testing.assert_close(loss(order), loss(torch.arange(4))[order], rtol=0, atol=0)
    # one of the two shuffled alone is another loss
    assert (posterior_divergence(LOGITS[order], joint) - posterior_divergence(LOGITS, joint)[order]).abs().max() > 0.1


# ---- the student's: L1, L2, L3, L6 as sources ----

NAN = float("nan")
BATCH = {
    "gold": CLEAN_LABEL,
    "cage": rows([[1 / 3, 2 / 3], [12 / 13, 1 / 13], [NAN, NAN], [1 / 2, 1 / 2]]),
    "weak_labels": torch.tensor([[0, -1, 1], [0, 0, -1], [-1, -1, -1], [-1, 0, 1]]),
}
OUTPUTS = Outputs(logits=LOGITS)
# H of odds 3:1
ENTROPY = -(3 / 4 * log(3 / 4) + 1 / 4 * log(1 / 4))


def posterior(votes: Tensor) -> Tensor:
    """Arithmetic's: of the rows it is asked for."""
    known = {tuple(v): p for v, p in zip(BATCH["weak_labels"].tolist(), POSTERIOR, strict=True)}
    return torch.stack([known[tuple(v)] for v in votes.tolist()])


def check(loss, expected, mask, batch=BATCH) -> None:
    logits = LOGITS.clone().requires_grad_()
    found = loss(Outputs(logits=logits), batch)
    close(found.detach(), expected)
    assert loss.mask(batch).tolist() == mask
    assert not found[~loss.mask(batch)].any()
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all() and not gradient[~loss.mask(batch)].any()


def test_l1_is_cross_entropy_on_labelled_rows():
    e = exp(1)
    check(CrossEntropy("gold"), [-log(1 / 4), 0.0, -log(1 / 2), -log(1 / (1 + e))], [True, False, True, True])


def test_l2_is_entropy_on_unlabelled_rows():
    check(Unlabelled(Entropy(), "gold"), [0.0, ENTROPY, 0.0, 0.0], [False, True, False, False])


def test_l3_is_cross_entropy_to_the_likeliest_class():
    """A tie and a row of NaN name no class."""
    check(PosteriorLabel("cage"), [-log(3 / 4), -log(3 / 4), 0.0, 0.0], [True, True, False, False])
    assert PosteriorLabel("cage").target(BATCH, 2).tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_l3_on_unlabelled_rows():
    loss = Unlabelled(PosteriorLabel("cage"), "gold")
    assert loss.columns == ("cage", "gold")
    check(loss, [0.0, -log(3 / 4), 0.0, 0.0], [False, True, False, False])
    assert loss.target(BATCH, 2).tolist() == [[0, 0], [1, 0], [0, 0], [0, 0]]
    assert Unlabelled(Entropy()).target(BATCH, 2) is None


def test_a_posterior_from_votes_abstains_where_nothing_votes():
    loss = FromVotes(Agreement("cage"), posterior)
    assert loss.columns == ("weak_labels",)
    check(loss, [KL[0], KL[1], 0.0, KL[3]], [True, True, False, True])
    assert torch.equal(loss.target(BATCH, 2), torch.where(torch.tensor([1, 1, 0, 1])[:, None] > 0, POSTERIOR, 0.0))


def test_a_posterior_from_votes_is_that_of_the_moment():
    now = {"posterior": lambda votes: rows([[1.0, 0.0]]).expand(len(votes), 2)}
    loss = FromVotes(PosteriorLabel("cage"), lambda votes: now["posterior"](votes))
    check(loss, [-log(1 / 4), -log(3 / 4), 0.0, 1 * log(1 + exp(-1.0))], [True, True, False, True])
    now["posterior"] = lambda votes: rows([[0.0, 1.0]]).expand(len(votes), 2)
    check(loss, [-log(3 / 4), -log(1 / 4), 0.0, log(1 + exp(1.0))], [True, True, False, True])


def test_what_reads_more_than_a_posterior_is_refused():
    for loss in (Unlabelled(Agreement("cage")), Entropy()):
        with pytest.raises(ValueError, match="`loss`: expected one that reads a posterior column alone, found"):
            FromVotes(loss, posterior)


def test_rows_of_sources_keep_their_order():
    stack = LossStack(
        {
            "L1": CrossEntropy("gold"),
            "L2": Unlabelled(Entropy()),
            "L3": Unlabelled(PosteriorLabel("cage")),
            "L6": FromVotes(Agreement("cage"), posterior),
        },
        {},
    )
    order = torch.tensor([3, 1, 0, 2])
    shuffled = {name: column[order] for name, column in BATCH.items()}
    assert torch.equal(stack(Outputs(logits=LOGITS[order]), shuffled), stack(OUTPUTS, BATCH)[order])
    assert torch.equal(stack.mask(shuffled), stack.mask(BATCH)[order])
