"""Projections against their definition, and every mixing against its update rule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from amal_hf._types import ROW_ID
from amal_hf.data.columns import RowIndex
from amal_hf.mixing import Fixed, Mixing, Rows, Shared, Table, Trust, box, centred, share, simplex
from amal_hf.weight_history import WeightHistory

N, K, C = 4, 3, 3
MASK = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
CLAMP = (1e-7, 2 - 1e-7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(
    index=(0, 1, 2, 3), mask: Tensor = MASK, targets: Tensor | None = None, class_gradient: Tensor | None = None
) -> Rows:
    n, k = mask.shape
    return Rows(
        index=torch.tensor(index),
        losses=torch.zeros(n, k, dtype=torch.float64),
        mask=mask,
        targets=torch.zeros(n, k, C, dtype=torch.float64) if targets is None else targets,
        class_gradient=torch.zeros(n, C, dtype=torch.float64) if class_gradient is None else class_gradient,
    )


# ---- projections ----


def by_bisection(u: list[float]) -> list[float]:
    """The τ at which Σ max(u − τ, 0) = 1, by halving."""
    low, high = min(u) - 1, max(u)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(x - middle, 0) for x in u) > 1 else (low, middle)
    return [max(x - low, 0) for x in u]


def test_simplex_is_the_projection():
    weights = draw(200, 5) * 2
    mask = draw(200, 5, seed=1) > -0.5
    found = simplex(weights, mask)
    for u, m, w in zip(weights.tolist(), mask.tolist(), found.tolist(), strict=True):
        applies = [x for x, on in zip(u, m, strict=True) if on]
        expected = iter(by_bisection(applies)) if applies else iter(())
        assert w == pytest.approx([next(expected) if on else x for x, on in zip(u, m, strict=True)], abs=1e-12)


def test_simplex_is_the_nearest_point():
    """No point of a grid over the simplex is nearer."""
    grid = [g for g in itertools.product([i / 20 for i in range(21)], repeat=3) if abs(sum(g) - 1) < 1e-9]
    for u in draw(20, 3) * 1.5:
        found = simplex(u[None], torch.ones(1, 3, dtype=torch.bool))[0]
        nearest = min(sum((a - b) ** 2 for a, b in zip(u.tolist(), g, strict=True)) for g in grid)
        assert found.sum().item() == pytest.approx(1, abs=1e-12) and found.min() >= 0
        assert (u - found).square().sum().item() <= nearest + 1e-12


def test_simplex_keeps_what_lies_on_it():
    inside = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(simplex(inside, torch.ones(2, 3, dtype=torch.bool)), inside, rtol=0, atol=1e-15)


def test_box_share_and_centred():
    assert box(torch.tensor([[-1.0, 0.5, 3.0]], dtype=torch.float64)).tolist() == [[1e-7, 0.5, 2 - 1e-7]]
    assert box(torch.tensor([[-1.0, 0.5, 3.0]]), 0.25, 0.4).tolist() == [[0.25, pytest.approx(0.4), pytest.approx(0.4)]]
    shared = share(torch.tensor([[1.0, 2.0, 1.0]] * N), MASK)
    assert shared.tolist() == [[0.25, 0.5, 0.25], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    g = draw(N, K)
    moved = centred(g, MASK, [[0], [1, 2]])
    assert not moved[~MASK].any()
    for columns in ([0], [1, 2]):
        applies = [(i, k) for i in range(N) for k in columns if MASK[i, k]]
        mean = sum(g[i, k].item() for i, k in applies) / len(applies)
        for i, k in applies:
            assert moved[i, k].item() == pytest.approx(g[i, k].item() - mean, abs=1e-12)


# ---- fixed ----


def test_fixed_is_the_vector_where_it_applies():
    fixed = Fixed(torch.tensor([0.1, 0.9, 0.5]))
    before = fixed.weights(batch())
    assert before.tolist() == (torch.tensor([0.1, 0.9, 0.5]).double() * MASK).tolist()
    assert before.dtype == torch.float64 and not fixed.learns and not fixed.per_row and fixed.state() == {}
    fixed.update(batch(), draw(N, K))
    fixed.commit()
    assert torch.equal(fixed.weights(batch()), before)


# ---- table ----


def test_table_in_a_box():
    table = Table(6, torch.tensor([0.1, 0.9, 0.9], dtype=torch.float64), "box", step=0.5, clamp=CLAMP)
    assert table.per_row and table.learns
    index, gradient = (5, 0, 3, 2), draw(N, K) * 2
    table.update(batch(index), gradient)
    for place, row in enumerate(index):
        for k, start in enumerate((0.1, 0.9, 0.9)):
            now = start - 0.5 * gradient[place, k].item() if MASK[place, k] else start
            assert table.table[row, k].item() == pytest.approx(min(max(now, CLAMP[0]), CLAMP[1]), abs=1e-12)
    assert torch.equal(table.table[[1, 4]], torch.tensor([[0.1, 0.9, 0.9]] * 2, dtype=torch.float64))
    weights = table.weights(batch(index))
    assert torch.equal(weights, table.table[list(index)] * MASK) and not weights[~MASK].any()
    assert (table.table == CLAMP[0]).any() and (table.table == CLAMP[1]).any(), "no bound was met: nothing is tested"


def test_table_on_the_simplex():
    table = Table(6, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), "simplex", step=0.1, clamp=CLAMP)
    index, gradient = (5, 0, 3, 2), draw(N, K)
    start = table.weights(batch(index))
    assert start[1].tolist() == pytest.approx([0.2 / 0.7, 0.0, 0.5 / 0.7])
    table.update(batch(index), gradient)
    after = table.weights(batch(index))
    for i in range(3):
        on = [k for k in range(K) if MASK[i, k]]
        expected = by_bisection([start[i, k].item() - 0.1 * gradient[i, k].item() for k in on])
        assert [after[i, k].item() for k in on] == pytest.approx(expected, abs=1e-12)
    assert 0 < after[1, 0] < 1, "one source took it all: where it started cannot show"
    assert not after[~MASK].any() and after.sum(1).tolist() == pytest.approx([1, 1, 1, 0])


def test_two_sources_on_the_simplex_are_alm_kd():
    """λ ← clip(λ − κ(g₁ − g₀)/2, 0, 1), the weight of the teacher; over several steps, bounds included."""
    both = torch.ones(N, 2, dtype=torch.bool)
    table = Table(N, torch.tensor([0.4, 0.6], dtype=torch.float64), "simplex", step=0.7, clamp=CLAMP)
    teacher, met = torch.full((N,), 0.6, dtype=torch.float64), False
    for seed in range(6):
        g = draw(N, 2, seed=seed)
        table.update(batch(mask=both), g)
        teacher = (teacher - 0.7 * (g[:, 1] - g[:, 0]) / 2).clamp(0, 1)
        met |= bool((teacher == 0).any() or (teacher == 1).any())
        torch.testing.assert_close(
            table.weights(batch(mask=both)), torch.stack([1 - teacher, teacher], 1), rtol=0, atol=1e-12
        )
    assert met, "no bound was met"


@pytest.mark.parametrize("constraint", ["box", "simplex"])
def test_a_table_in_half_precision_is_the_same_but_for_rounding(constraint):
    start = torch.tensor([0.2, 0.3, 0.5])
    tables = [Table(6, start, constraint, 0.3, CLAMP, dtype) for dtype in (torch.float16, torch.float32)]
    for seed in range(5):
        for table in tables:
            table.update(batch((5, 0, 3, 2)), draw(N, K, seed=seed))
    half, full = (table.weights(batch((5, 0, 3, 2))) for table in tables)
    assert tables[0].table.dtype == torch.float16 and half.dtype == torch.float64
    assert tables[1].table.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=5 * 2**-11)  # 5 roundings of what is at most 2
    held = tables[0].state()
    again = Table(6, start, constraint, 0.3, CLAMP, torch.float16)
    again.load_state(held)
    assert torch.equal(again.table, tables[0].table)


def test_a_million_rows_in_half_precision_take_two_bytes_a_weight():
    table = Table(10**6, torch.ones(3), "box", 0.2, CLAMP, torch.float16)
    assert table.table.untyped_storage().nbytes() == 6 * 10**6


def test_a_negative_gradient_raises_the_weight():
    for constraint in ("box", "simplex"):
        table = Table(N, torch.full((K,), 1 / K, dtype=torch.float64), constraint, step=0.1, clamp=CLAMP)
        gradient = torch.zeros(N, K, dtype=torch.float64)
        gradient[:, 1] = -1.0
        before = table.weights(batch())
        table.update(batch(), gradient)
        assert (table.weights(batch())[:2] - before[:2])[MASK[:2, 1], 1].min() > 0


# ---- what is kept beside a table, row by row ----


def test_row_ids_in_order_are_positions_and_not_kept():
    index = RowIndex(np.arange(1000))
    assert index({ROW_ID: torch.tensor([7, 0, 999])}).tolist() == [7, 0, 999]
    assert torch.equal(index.ids, torch.arange(1000))
    assert not [t for t in vars(index).values() if isinstance(t, torch.Tensor)]


def test_row_ids_in_any_order_are_found():
    ids = [40, 7, 0, 12, 3]
    index = RowIndex(ids)
    assert index({ROW_ID: torch.tensor([12, 40, 3])}).tolist() == [3, 0, 4]
    assert index.ids.tolist() == ids
    assert RowIndex([1, 2, 3])({ROW_ID: torch.tensor([3, 1])}).tolist() == [2, 0]  # not from 0


def test_rows_of_a_stream_have_no_position():
    index = RowIndex(None)
    assert index({"labels": torch.zeros(3)}).tolist() == [-1] * 3 and len(index.ids) == 0


def test_history_takes_room_only_for_what_it_keeps():
    silent = WeightHistory(["a", "b"], 5)
    assert silent.state() == {} and silent.last is None and silent.last_weights().isnan().all()
    kept = WeightHistory(["a", "b"], 5, torch.float16)
    mask = torch.tensor([[True, False], [True, True]])
    kept.record(torch.tensor([3, 1]), torch.tensor([[0.5, 9.0], [0.25, 1.0]]), mask)
    assert kept.last_weights().dtype == torch.float16
    assert kept.last_weights()[[3, 1]].nan_to_num(-1).tolist() == [[0.5, -1], [0.25, 1.0]]
    assert kept.last_weights()[[0, 2, 4]].isnan().all()
    other = WeightHistory(["a", "b"], 5)
    other.load(kept.state(), [])
    assert torch.equal(other.last_weights().nan_to_num(-1), kept.last_weights().float().nan_to_num(-1))
    with pytest.raises(ValueError, match="found a stream"):
        WeightHistory(["a"], None).last_weights()


# ---- shared ----


def mean_gradient(parts: list[tuple[Rows, Tensor]]) -> list[float]:
    means = []
    for k in range(K):
        values = [g[i, k].item() for rows, g in parts for i in range(len(g)) if rows.mask[i, k]]
        means.append(sum(values) / len(values) if values else 0.0)
    return means


@pytest.mark.parametrize("constraint", ["box", "simplex"])
def test_shared_moves_by_the_mean_of_the_optimizer_step(constraint):
    start = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    shared = Shared(start, constraint, 0.4, CLAMP)
    parts = [(batch(), draw(N, K)), (batch(mask=MASK[:2], index=(0, 1)), draw(2, K, seed=1))]
    before = shared.weights(batch())
    for rows, gradient in parts:
        shared.update(rows, gradient)
    assert torch.equal(shared.weights(batch()), before), "what rows share moves only in commit"
    shared.commit()
    moved = [s - 0.4 * g for s, g in zip(start.tolist(), mean_gradient(parts), strict=True)]
    expected = by_bisection(moved) if constraint == "simplex" else [min(max(x, CLAMP[0]), CLAMP[1]) for x in moved]
    assert shared.vector.tolist() == pytest.approx(expected, abs=1e-12)
    assert start.tolist() == [0.2, 0.3, 0.5]  # the caller's own is left alone
    shared.commit()
    assert shared.vector.tolist() == pytest.approx(expected, abs=1e-12), "a gradient is used once"


def test_shared_does_not_depend_on_the_split_into_micro_batches():
    """1 × 4 ≡ 4 × 1, although sources apply to different numbers of rows."""
    gradient, vectors = draw(N, K), []
    for pieces in ([slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]):
        shared = Shared(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), "box", 0.4, CLAMP)
        for piece in pieces:
            shared.update(batch(tuple(range(N))[piece], MASK[piece]), gradient[piece])
        shared.commit()
        vectors.append(shared.vector)
    for other in vectors[1:]:
        torch.testing.assert_close(other, vectors[0], rtol=0, atol=1e-15)


def test_shared_weights_apply_per_row():
    start = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert torch.equal(Shared(start, "box", 0.1, CLAMP).weights(batch()), start * MASK)
    convex = Shared(start, "simplex", 0.1, CLAMP).weights(batch())
    torch.testing.assert_close(convex, share(start.expand(N, K), MASK), rtol=0, atol=0)
    assert convex.sum(1).tolist() == pytest.approx([1, 1, 1, 0])


def test_shared_source_that_always_abstains_stays():
    shared = Shared(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), "box", 0.4, CLAMP)
    mask = torch.tensor([[True, False, True]] * N)
    shared.update(batch(mask=mask), torch.ones(N, K, dtype=torch.float64))
    shared.commit()
    assert shared.vector.tolist() == pytest.approx([CLAMP[0], 0.3, 0.1], abs=1e-12)


# ---- trust ----

RIGHT, WRONG = 0.6, 0.4  # of two classes, before anything is learned


def two_class_rows() -> Rows:
    """Source 0 says class 0, source 1 leans to class 1; on the second row source 1 is silent."""
    return Rows(
        index=torch.tensor([0, 1]),
        losses=torch.zeros(2, 2, dtype=torch.float64),
        mask=torch.tensor([[True, True], [True, False]]),
        targets=torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64),
        class_gradient=torch.tensor([[1.2, -1.2], [0.0, 0.0]], dtype=torch.float64),
    )


def posterior_by_hand() -> list[list[float]]:
    tempered = 2**-0.5
    both = [
        math.exp(1.2) * (RIGHT * RIGHT**0.25 * WRONG**0.75) ** tempered,
        math.exp(-1.2) * (WRONG * WRONG**0.25 * RIGHT**0.75) ** tempered,
    ]
    return [[p / sum(both) for p in both], [WRONG, RIGHT]]


def test_trust_posterior_of_two_classes():
    trust, rows = Trust(2, 2, torch.ones(2)), two_class_rows()
    expected = posterior_by_hand()
    for found, row in zip(trust.posterior(rows).tolist(), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-6)  # the counts are kept in float32
    (a, b), (_, right) = expected
    weights = trust.weights(rows)
    assert weights[0].tolist() == pytest.approx([a, 0.25 * a + 0.75 * b], rel=1e-6)
    assert weights[1].tolist() == pytest.approx([right, 0.0], rel=1e-6)


def test_trust_learns_confusions_in_commit():
    trust, rows = Trust(2, 2, torch.ones(2), forgetting=0.9), two_class_rows()
    before, (first, second) = trust.weights(rows), posterior_by_hand()
    trust.update(rows, torch.zeros(2, 2))
    assert torch.equal(trust.weights(rows), before)
    trust.commit()
    for c in range(2):  # [source, true, said]
        assert trust.counts[0, c].tolist() == pytest.approx([first[c], second[c]], rel=1e-5)
        assert trust.counts[1, c].tolist() == pytest.approx([0.25 * first[c], 0.75 * first[c]], rel=1e-5)
    counts = trust.counts.clone()
    trust.commit()
    torch.testing.assert_close(trust.counts, counts, rtol=0, atol=0)  # nothing seen, nothing forgotten
    trust.update(rows, torch.zeros(2, 2))
    new = torch.einsum("nc,nks->kcs", trust.posterior(rows), rows.targets).float()
    trust.commit()
    torch.testing.assert_close(trust.counts, 0.9 * counts + new)


def test_trust_shrinks_a_rare_class_towards_the_source_s_own_rate():
    """100 prior rows at the overall rate beside what was counted: class 2 was never seen, and borrows the rest's."""
    trust = Trust(1, 3, torch.ones(1))
    trust.counts[0, 0] = torch.tensor([90.0, 10.0, 0.0])
    trust.counts[0, 1] = torch.tensor([0.0, 100.0, 0.0])
    overall = (190 + 60) / (200 + 100)
    confusion = trust.confusion()[0]
    assert confusion[2].tolist() == pytest.approx([(1 - overall) / 2, (1 - overall) / 2, overall])
    assert confusion[0, 0].item() == pytest.approx((90 + 100 * overall) / 200)
    torch.testing.assert_close(confusion.sum(1), torch.ones(3))


def test_trust_follows_the_advice():
    targets = torch.eye(C, dtype=torch.float64)[[0, 1, 2]].expand(1, 3, C)
    for c in range(C):
        class_gradient = torch.full((1, C), -1 / 6**0.5, dtype=torch.float64)
        class_gradient[0, c] = 2 / 6**0.5
        rows = Rows(torch.tensor([0]), torch.zeros(1, 3).double(), torch.ones(1, 3).bool(), targets, class_gradient)
        assert Trust(3, C, torch.ones(3)).weights(rows).argmax().item() == c


def test_trust_distrusts_a_source_that_is_always_wrong():
    """Source 1 says the class after the right one: it sinks, and then it is evidence for the right one."""
    trust = Trust(2, C, torch.ones(2))
    truth = torch.arange(30) % C
    targets = torch.stack([torch.eye(C)[truth], torch.eye(C)[(truth + 1) % C]], 1).double()
    class_gradient = (torch.eye(C)[truth] - 1 / C).double() / (2 / 3) ** 0.5
    rows = Rows(torch.arange(30), torch.zeros(30, 2).double(), torch.ones(30, 2).bool(), targets, class_gradient)
    for _ in range(50):
        trust.update(rows, torch.zeros(30, 2))
        trust.commit()
    weights = trust.weights(rows)
    assert weights[:, 0].min() > 0.9 and weights[:, 1].max() < 0.1
    lone = Rows(rows.index, rows.losses, torch.tensor([[False, True]] * 30), targets * torch.tensor([[[0.0], [1.0]]]),
                torch.zeros(30, C, dtype=torch.float64))  # fmt: skip
    assert torch.equal(trust.posterior(lone).argmax(1), truth)


def test_trust_gives_start_to_sources_without_a_class():
    trust = Trust(K, C, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(trust.weights(batch()), (torch.tensor([0.1, 0.2, 0.3]) * MASK).double(), rtol=0, atol=0)


# ---- every mixing ----


def every() -> dict[str, Mixing]:
    start = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return {
        "fixed": Fixed(start),
        "shared-box": Shared(start, "box", 0.1, CLAMP),
        "shared-simplex": Shared(start, "simplex", 0.1, CLAMP),
        "table-box": Table(N, start, "box", 0.1, CLAMP),
        "table-simplex": Table(N, start, "simplex", 0.1, CLAMP),
        "trust": Trust(K, C, start),
    }


def covering() -> Rows:
    targets = torch.nn.functional.one_hot(torch.randint(C, (N, K), generator=torch.Generator().manual_seed(0)), C)
    return batch(targets=targets.double() * MASK[..., None], class_gradient=draw(N, C, seed=3))


@pytest.mark.parametrize("name", every())
def test_masked_sources_weigh_nothing_and_do_not_learn(name):
    rows, gradient = covering(), draw(N, K)
    loud = torch.where(MASK, gradient, 1e6)
    results = []
    for g in (gradient, loud):
        mixing = every()[name]
        for _ in range(3):
            mixing.update(rows, g)
            mixing.commit()
        results.append(mixing.weights(rows))
    assert not results[0][~MASK].any() and results[0][MASK].any()
    assert torch.equal(*results), "the gradient of a masked source was read"


@pytest.mark.parametrize("name", [name for name, mixing in every().items() if mixing.learns])
def test_state_round_trip(name):
    rows, learned, fresh = covering(), every()[name], every()[name]
    for seed in range(3):
        learned.update(rows, draw(N, K, seed=seed))
        learned.commit()
    state = {key: t.clone() for key, t in learned.state().items()}
    assert state and not torch.equal(learned.weights(rows), fresh.weights(rows))
    fresh.load_state(state)
    assert torch.equal(learned.weights(rows), fresh.weights(rows))
    for mixing in (learned, fresh):  # and they go on alike
        mixing.update(rows, draw(N, K, seed=9))
        mixing.commit()
    assert torch.equal(learned.weights(rows), fresh.weights(rows))


@pytest.mark.parametrize("name", [name for name, mixing in every().items() if mixing.learns])
def test_state_of_another_run_is_refused(name):
    mixing = every()[name]
    (key,) = mixing.state()
    with pytest.raises(ValueError, match=rf"`resume_from_checkpoint`: expected '{key}' of shape .* found nothing"):
        mixing.load_state({})
    with pytest.raises(ValueError, match=r"found \(2, 2\). The checkpoint belongs to another data set"):
        mixing.load_state({key: torch.zeros(2, 2)})
