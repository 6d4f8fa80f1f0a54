"""What runs where. Every cell of `support_matrix.md` is what its check returned; running this file writes it.

python tests/end_to_end/test_support_matrix.py   # checks everything and writes the table
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import planted
import pytest
import test_tasks
import torch
from peft import LoraConfig, get_peft_model
from planted import CLASSES, VOCABULARY, furthest, identical, parameters, table_of
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from transformers.utils import logging as hf_logging

from amal_hf.metagrad.tasks import MULTI_LABEL, REGRESSION

PAGE = Path(__file__).with_name("support_matrix.md")
COLUMNS = {"head": "lookahead on the head (default)", "all": "lookahead on the whole network"}
STILL = {"method": "amal-step", "lookahead": "none", "center": False}
Build = Callable[..., Any]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "BERT": {"model_type": "bert"},
    "RoBERTa": {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 0},
    "DistilBERT": {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "DeBERTa-v2": {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "ModernBERT": {"model_type": "modernbert", "global_attn_every_n_layers": 2, "local_attention": 8},
    "Llama (decoder)": {"model_type": "llama", "num_key_value_heads": 2},
    "GPT-2 (decoder)": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2},
}


def tiny(which: str) -> nn.Module:
    """Two layers, 16 wide, without dropout, in float64: Adam has no rounding to blow up where a gradient is zero."""
    own = dict(ARCHITECTURES[which])
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    dropout = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
    )
    dropout += (
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "summary_first_dropout",
        "classifier_dropout",
        "pooler_dropout",
    )
    own = {**({} if "dim" in own or "n_embd" in own else size), **dict.fromkeys(dropout, 0.0), **ids, **own}
    config = AutoConfig.for_model(
        **own, vocab_size=len(VOCABULARY), max_position_embeddings=40, num_labels=CLASSES, initializer_range=0.2
    )
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float64)


def trained(build: Build, moves: str, model: nn.Module | None = None, **settings: Any) -> Any:
    """A short run with a table of weights, which shows every meta-gradient by itself."""
    trainer = build(
        {**STILL, "lookahead_params": moves, "logging_steps": 1, **settings},
        model=model if model is not None else planted.make_student(),
        train_dataset=planted.make_rows(32, wrong=0.4),
        losses=planted.make_losses(),
    )
    trainer.train()
    return trainer


def ends(trainer: Any) -> dict[str, torch.Tensor]:
    """Weights, λ and losses."""
    told = [log[f"loss/{name}"] for log in trainer.state.log_history if "loss" in log for name in ("label", "teacher")]
    return parameters(trainer) | {"table": table_of(trainer), "losses": torch.tensor(told)}


def moved(trainer: Any) -> torch.Tensor:
    table = table_of(trainer)
    assert table.isfinite().any() and table.nan_to_num(nan=1.0).ne(1).any(), "no weight moved: nothing is shown"
    return table


# ---- the rows: each returns what it found ----


def accumulated(build: Build, moves: str, make: Callable[[], nn.Module], **settings: Any) -> str:
    """1×16 = 4×4 = 16×1: weights, λ and losses, to 1e-6."""
    runs = []
    for batch in (16, 4, 1):
        split = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 16 // batch,
            "num_train_epochs": 1,
        }
        runs.append(trained(build, moves, make(), **split, **settings))
        moved(runs[-1])
    whole, *parts = map(ends, runs)
    for part in parts:
        assert furthest(whole, part) < 1e-6
    return "exact"


def architecture(which: str) -> Callable[[Build, str], str]:
    def check(build: Build, moves: str) -> str:
        found = accumulated(build, moves, lambda: tiny(which))
        return f"{found}: 1×16 = 4×4 = 16×1"

    return check


def head_of(task: str) -> Callable[[Build, str], str]:
    """Labels that are no single class, on rows of their own."""

    def check(build: Build, moves: str) -> str:
        runs = []
        for batch in (16, 4, 1):
            split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch}
            settings = {**STILL, **split, "lookahead_params": moves, "logging_steps": 1, "num_train_epochs": 1}
            runs.append(test_tasks.make_trainer(build, task, settings, model=test_tasks.make_student(task).double()))
            runs[-1].train()
            moved(runs[-1])
        whole, *parts = map(ends, runs)
        for part in parts:
            assert furthest(whole, part) < 1e-6
        for settings in ({"method": "trust", "lookahead_params": moves}, {"method": "denoise"}):
            with pytest.raises(ValueError, match=r"`method`: .*Set method="):
                test_tasks.make_trainer(build, task, settings)
        return "exact: 1×16 = 4×4 = 16×1; methods that believe in classes (trust, denoise) are refused"

    return check


def accumulated_lookahead(build: Build, moves: str) -> str:
    """θ′ and the centre come from the rows at hand, and those are a micro-batch's: said in the log, shown here."""
    for settings in ({"lookahead": "sgd"}, {"center": True}):
        with pytest.raises(AssertionError):
            accumulated(build, moves, lambda: planted.make_student().double(), **settings)
        split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
        with logged_by("amal_hf.data.validate") as told:
            assert moved(trained(build, moves, **split, **settings)).nan_to_num().isfinite().all()
        assert any("first micro-batch" in line for line in told)
    return "runs: the first micro-batch stands for its step, so 4×4 is near 1×16"


@contextmanager
def logged_by(name: str) -> Iterator[list[str]]:
    """What a module logs, from INFO on."""
    told: list[str] = []
    handler, logger = logging.Handler(), hf_logging.get_logger(name)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def autocast(build: Build, moves: str) -> str:
    half, full = (moved(trained(build, moves, bf16=bf16, num_train_epochs=1)) for bf16 in (True, False))
    gap = (half - full).abs().nan_to_num().max()
    assert gap < 0.05  # of steps of 0.2 at most
    return "runs: λ as in float32 to 0.05"


def scaled(build: Build, moves: str) -> str:
    """Accelerate scales gradients on GPUs, and trains in float32 on a CPU: lend it autocast and a scaler of its own."""

    def from_scale(scale: float) -> Build:
        def lent(*args: Any, **given: Any) -> Any:
            trainer = build(*args, **given)
            trainer.accelerator.native_amp = True
            trainer.accelerator.scaler = torch.amp.GradScaler(trainer.args.device.type, init_scale=scale)
            return trainer

        return lent

    half = moved(trained(from_scale(2**10), moves, fp16=True, num_train_epochs=1))
    full = moved(trained(build, moves, num_train_epochs=1))
    gap = (half - full).abs().nan_to_num().max()
    assert 0 < gap < 0.05  # of steps of 0.2 at most
    start = dict(planted.make_student().named_parameters())
    overflowed = trained(from_scale(2**24), moves, fp16=True, num_train_epochs=1)
    moved(overflowed)
    assert identical(start, parameters(overflowed)) == []
    return "runs: λ as in float32 to 0.05; a step that overflows is skipped by the scaler"


def compiled(build: Build, moves: str) -> str:
    eager = ends(trained(build, moves, num_train_epochs=1))
    other = trained(build, moves, num_train_epochs=1, torch_compile=True, torch_compile_backend="aot_eager")
    moved(other)
    assert furthest(eager, ends(other)) < 1e-5
    return "exact: = eager"


def checkpointed(build: Build, moves: str) -> str:
    plain = trained(build, moves, estimator="difference" if moves == "all" else "auto")
    other = trained(build, moves, gradient_checkpointing=True)
    moved(other)
    assert furthest(ends(plain), ends(other)) < 1e-5
    return "exact" if moves == "head" else "exact to the differences it takes by itself"


def lora() -> nn.Module:
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    set_seed(1)
    return get_peft_model(planted.make_student().double(), config)


def adapted(build: Build, moves: str) -> str:
    model = lora()
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = trained(build, moves, model)
    assert identical(base, {name: p for name, p in trainer.model.named_parameters() if name in base}) == []
    return f"{accumulated(build, moves, lora)}: adapters and head move, the rest stays"


def frozen(*names: str) -> nn.Module:
    model = planted.make_student().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return model


def frozen_body(build: Build, moves: str) -> str:
    held = ("bert.embeddings", "bert.encoder.layer.0")
    trainer = trained(build, moves, frozen(*held))
    start = dict(planted.make_student().double().named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, start[name]) == name.startswith(held), name
    return accumulated(build, moves, lambda: frozen(*held))


def frozen_head(build: Build, moves: str) -> str:
    if moves == "all":
        return accumulated(build, moves, lambda: frozen("classifier"))
    with pytest.raises(ValueError, match=r"`lookahead_params`.*Set lookahead_params='all'"):
        trained(build, moves, frozen("classifier"))
    return "refused: use lookahead_params='all'"


def eight_bits(build: Build, moves: str) -> str:
    """The package absent: said at the door. There: states of 8 bits, and λ as with those of 32."""
    for optim, package in {"adamw_bnb_8bit": "bitsandbytes", "adamw_torch_8bit": "torchao"}.items():
        with (
            patch(f"amal_hf.data.validate.is_{package}_available", return_value=False),
            pytest.raises(ValueError, match=rf"`optim`: expected the package {package} for '{optim}'.*pip install"),
        ):
            trained(build, moves, optim=optim)
    pytest.importorskip("torchao.optim")
    large = [planted.make_student(hidden=64) for _ in range(2)]  # smaller matrices keep 32 bits
    whole, half = (trained(build, moves, model, optim=f"adamw_{name}")
                   for model, name in zip(large, ("torch", "torch_8bit"), strict=True))  # fmt: skip
    held = {type(each).__name__ for state in half.optimizer.state.values() for each in state.values()}
    assert "OptimState8bit" in held
    assert (moved(whole) - moved(half)).abs().nan_to_num().max() < 0.05
    moved(trained(build, moves, optim="adafactor"))
    for optim in ("adafactor", "adamw_torch_8bit"):
        with pytest.raises(ValueError, match=r"`lookahead`: .*Set lookahead='sgd' or 'none'"):
            trained(build, moves, optim=optim, lookahead="optimizer")
    return "runs with lookahead='none' or 'sgd': λ as with 32 bits to 0.05; lookahead='optimizer' refused"


def stream(build: Build, moves: str) -> str:
    rows = planted.make_rows(32, wrong=0.4).to_iterable_dataset()
    settings = {"method": "trust", "max_steps": 6, "meta_start": 1, "lookahead_params": moves}
    with logged_by("amal_hf.data.validate") as told:
        trainer = build(settings, train_dataset=rows)
        trainer.train()
    assert any("stream" in line and "kept" in line for line in told)
    assert trainer.state.log_history[-2]["weight/label/q10"] < trainer.state.log_history[-2]["weight/label/q90"]
    with pytest.raises(ValueError, match=r"`train_dataset`: .*stream.*Use method='trust'"):
        build({"method": "amal-step", "max_steps": 2}, train_dataset=rows)
    return "methods without a table run with max_steps; a table is refused: use method='trust'"


def attention(kernel: str) -> Callable[[Build, str], str]:
    def check(build: Build, moves: str) -> str:
        def with_kernel(name: str) -> nn.Module:
            model = planted.make_student().double()
            model.set_attn_implementation(name)
            return model

        one, other = (trained(build, moves, with_kernel(name)) for name in (kernel, "eager"))
        moved(one)
        assert furthest(ends(one), ends(other)) < 1e-6
        return "exact"

    return check


ROWS: dict[str, Callable[[Build, str], str]] = {
    **{name: architecture(name) for name in ARCHITECTURES},
    "regression": head_of(REGRESSION),
    "multi-label": head_of(MULTI_LABEL),
    "accumulation with lookahead='sgd', 'optimizer' or center=True": accumulated_lookahead,
    "SDPA attention": attention("sdpa"),
    "bf16 autocast": autocast,
    "fp16 autocast, scaled gradients": scaled,
    "torch.compile (aot_eager)": compiled,
    "gradient checkpointing": checkpointed,
    "LoRA (PEFT)": adapted,
    "frozen layers": frozen_body,
    "frozen head": frozen_head,
    "8-bit and other optimizers": eight_bits,
    "IterableDataset": stream,
}
# of how it is launched: checked by tests/end_to_end/test_launch.py
LAUNCHED = {
    "two processes (DDP)": ("exact: = one process with the same rows a step",) * 2,
    "two processes (FSDP2)": (
        "exact: = one process with the same rows a step",
        "refused: use lookahead_params='head', or DDP",
    ),
    "DeepSpeed ZeRO, FSDP1": (
        "learned weights are refused: use FSDP2, or DDP with bf16, checkpointing or LoRA",
    ) * 2,
    "nn.DataParallel": ("refused: use accelerate launch",) * 2,
}  # fmt: skip
SLOW = {
    *ARCHITECTURES,
    "8-bit and other optimizers",
    "LoRA (PEFT)",
    "frozen layers",
    "frozen head",
    "torch.compile (aot_eager)",
} - {"BERT"}


def table(cells: dict[tuple[str, str], str]) -> str:
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(cells[row, moves] for moves in COLUMNS) + " |" for row in ROWS]
    lines += [f"| {row} | " + " | ".join(promises) + " |" for row, promises in LAUNCHED.items()]
    return "\n".join(lines) + "\n"


def written() -> dict[tuple[str, str], str]:
    """The cells of the page."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in PAGE.read_text().splitlines()[2:]]
    return {(line[0], moves): cell for line in lines for moves, cell in zip(COLUMNS, line[1:], strict=True)}


@pytest.mark.parametrize(
    ("row", "moves"),
    [
        pytest.param(row, moves, marks=[pytest.mark.slow] if row in SLOW or moves == "all" else [])
        for row in ROWS
        for moves in COLUMNS
    ],
)
def test_a_cell_says_what_was_found(row, moves, build):
    assert ROWS[row](build, moves) == written()[row, moves]


def test_the_page_has_the_rows_that_are_checked():
    assert table(written()) == PAGE.read_text()


def test_the_documentation_shows_this_page():
    shown = (PAGE.parents[2] / "docs" / "support.md").read_text()
    assert shown.split("<!-- support -->\n")[1].split("\n<!-- /support -->")[0] == PAGE.read_text().strip()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        count = itertools.count()

        def run(settings: Any = None, **given: Any) -> Any:
            return planted.make_trainer(Path(folder) / f"run{next(count)}", settings, **given)

        found = {}
        for (name, check), way in itertools.product(ROWS.items(), COLUMNS):
            found[name, way] = check(run, way)
            print(name, way, found[name, way], flush=True)
        PAGE.write_text(table(found))
