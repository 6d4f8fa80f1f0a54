"""CONTRIBUTING.md by doing it: its loss, mixing, estimator and method are built from the page and used."""

import ast
import re
from pathlib import Path

import pytest
import torch

from amal_hf import METHODS, AMALConfig, Outputs
from amal_hf.losses import FunctionLoss, LossStack
from amal_hf.metagrad import DoubleBackward, MetaProblem
from amal_hf.mixing import Rows

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
PACKAGE = PAGE.parent / "amal_hf"


@pytest.fixture(scope="module")
def page():
    names: dict = {}
    before = dict(METHODS)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    yield names
    for name in METHODS.keys() - before.keys():
        del METHODS[name]


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


def test_the_method_is_a_row_of_the_table(page, build):
    (name,) = [method for method in page["METHODS"] if method not in (PACKAGE / "methods.py").read_text()]
    trainer = build({"method": name})
    assert trainer.args.resolved().constraint == "simplex" and trainer.args.resolved().meta_every == 2
    trainer.train()
    weights = torch.tensor([[row[c] for c in trainer.stack.names] for row in trainer.weights], dtype=torch.float64)
    assert torch.allclose(weights.nan_to_num(0.0).sum(1), torch.ones(len(weights), dtype=torch.float64), atol=1e-5)
    with pytest.raises(ValueError, match="`method`"):
        AMALConfig("out", method="simplex-seldom")


def test_a_method_is_known_by_its_row_alone():
    """No other module has the name of a method that is a row of the table and nothing else."""
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "methods.py"]
    words = {node.value for path in others for node in ast.walk(ast.parse(path.read_text())) if is_text(node)}
    assert not {"alm-kd", "amal-step", "l2r"} & words


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_every_path_that_the_page_names_is_there():
    for path in set(re.findall(r"`((?:tests|docs|amal_hf|examples)/[\w./-]*)`", PAGE.read_text())):
        assert (PAGE.parent / path).exists(), path
