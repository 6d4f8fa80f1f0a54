"""CONTRIBUTING.md by doing it: its loss, mixing and estimator are built from the page and used."""

import re
from pathlib import Path

import pytest
import torch

from amal_hf import Outputs
from amal_hf.losses import FunctionLoss, LossStack
from amal_hf.metagrad import DoubleBackward, MetaProblem
from amal_hf.mixing import Rows

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def page() -> dict:
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


def test_the_loss_stands_in_a_stack(page):
    stack = LossStack({"focal": page["Focal"](), "zero": FunctionLoss(lambda out, batch: out.logits.sum(1) * 0)}, {})
    batch = {"labels": torch.tensor([0, -100])}
    rows = stack(Outputs(logits=torch.tensor([[0.0, 0.0], [1.0, 2.0]])), batch)
    assert torch.allclose(rows[:, 0], torch.tensor([0.25 * 0.6931472, 0.0]))


def test_the_mixing_reweights(page):
    mixing = page["Memoryless"]()
    nothing = torch.zeros(2, 1)
    rows = Rows(torch.arange(2), nothing, nothing == 0, torch.zeros(2, 1, 2), torch.zeros(2, 2))
    mixing.update(rows, torch.tensor([[-3.0], [1.0]]))
    assert torch.equal(mixing.weights(rows), torch.tensor([[2.0], [0.0]]))


def test_the_estimator_agrees_with_the_oracle(page):
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = MetaProblem(
        params={"w": torch.ones(2, dtype=torch.float64)},
        weights=torch.ones(3, 1, dtype=torch.float64),
        losses=lambda p: (x @ p["w"]).square()[:, None],
        val_loss=lambda p: (p["w"] - 2).square().sum(),
        lr=0.1,
    )
    assert torch.allclose(page["RowByRow"]()(problem), DoubleBackward()(problem), rtol=1e-12)
