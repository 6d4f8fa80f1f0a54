"""What `overhead.py` compares: rows of its table, each a trainer that takes one step at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from amal_hf import AMALConfig, AMALTrainer, CrossEntropy, Distillation, LabelingFunctions
from amal_hf._types import Tensors
from amal_hf.commands.train import default_model
from amal_hf.denoising import CLEAN_LABEL, LOG_POSTERIOR, PROBE
from amal_hf.denoising.inputs import ADDED, Prepared
from amal_hf.losses import LossStack
from amal_hf.metagrad import (
    DoubleBackward,
    MetaProblem,
    NoStep,
    PureModel,
    RNGState,
    in_float32,
    model_outputs,
    trainable,
)

CLASSES, TEMPERATURE = 4, 2.0
TINY = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 32, "max_position_embeddings": 128}


@dataclass(frozen=True)
class Scene:
    """Model, batch and rows that every row of a table has in common.

    Args:
        model: "minilm" (pretrained), "bert-base" or "tiny" (random weights).
        clean: clean rows.
    """

    model: str
    length: int
    precision: str = "fp32"
    batch: int = 32
    clean: int = 64

    def student(self) -> PreTrainedModel:
        set_seed(0)
        if self.model == "minilm":
            return AutoModelForSequenceClassification.from_pretrained(default_model(), num_labels=CLASSES)
        given: dict[str, Any] = TINY if self.model == "tiny" else {}
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return BertForSequenceClassification(BertConfig(num_labels=CLASSES, **given))

    def rows(self, count: int, seed: int, vocabulary: int) -> Dataset:
        """Invented tokens, none of them padding, and everything that a source may read."""
        draw = np.random.default_rng(seed)
        opinion = draw.dirichlet(np.ones(CLASSES), count).astype(np.float32)
        return Dataset.from_dict(
            {
                "input_ids": draw.integers(vocabulary // 2, vocabulary, (count, self.length)),
                "attention_mask": np.ones((count, self.length), np.int64),
                "label": np.arange(count) % CLASSES,
                "teacher_logits": draw.normal(size=(count, CLASSES)).astype(np.float32),
                "weak_labels": draw.integers(-1, CLASSES, (count, 10)),
                LOG_POSTERIOR: np.log(opinion),
                PROBE: opinion,
                CLEAN_LABEL: np.where(np.arange(count) % 4, -100, np.arange(count) // 4 % CLASSES),
            }
        )


@dataclass(frozen=True)
class Row:
    """A row of the table, and what its step costs by counting forwards: forward 1, backward 2, JVP 3.

    Args:
        config: of `AMALConfig`, where it is ours.
        meta: clean rows of a lookahead beside the rows of the batch.
        clean_cost: forwards of a lookahead per `meta`: 1 without gradient, 3 with.
        fixed_cost: forwards of a lookahead whatever `meta`.
        every: values of `meta_every` to report; none where there is no lookahead.
        rival: name in `RIVALS`.
        derivative: "network" or "head": of which parameters, where the row claims a meta-gradient.
        targets: `meta_every` (0: no lookahead) -> most of a plain step's time.
    """

    config: Mapping[str, Any] | None = None
    meta: float = 0.0
    clean_cost: float = 0.0
    fixed_cost: float = 0.0
    every: tuple[int, ...] = ()
    rival: str = ""
    derivative: str = ""
    targets: Mapping[int, float] = field(default_factory=dict)

    def forwards(self, every: int) -> float:
        """Of one step, on average, when a lookahead comes every `every` steps (0: never)."""
        return 3 + (self.clean_cost * self.meta + self.fixed_cost) / every if every else 3


def _ours(estimator: str, scope: str, meta: float) -> Row:
    config = {
        "method": "custom",
        "mixing": "instance",
        "lookahead_params": scope,
        "estimator": estimator,
        "mixing_scale": "raw",
    }
    costs: dict[str, Any] = {"clean_cost": 1.0, "targets": {1: 1.15}}
    if scope == "all":
        costs = {"clean_cost": 3.0, "fixed_cost": 3.0 if estimator == "forward" else 2.0, "targets": {1: 2.5}}
    derivative = "network" if scope == "all" else "head"
    return Row(config, meta, every=(1, 5, 10), derivative=derivative, **costs)


def _rival(name: str, fixed_cost: float, meta: float) -> Row:
    given: dict[str, Any] = {"rival": name, "derivative": "network", "every": (1, 5, 10)}
    return Row(meta=meta, clean_cost=3.0, fixed_cost=fixed_cost, **given)


ROWS: dict[str, Row] = {
    "plain": Row(),
    "distillation by hand": Row(),
    "fixed": Row({"method": "fixed"}, targets={0: 1.05}),
    "trust": Row({"method": "trust"}, meta=2.0, clean_cost=1.0, every=(5, 10), targets={10: 1.10}),
    "denoise": Row({"method": "denoise"}, targets={0: 1.10}),
}
for _share, _meta in {"1/2": 0.5, "1": 1.0}.items():
    ROWS |= {
        f"head, meta {_share}": _ours("head", "head", _meta),
        f"forward, meta {_share}": _ours("forward", "all", _meta),
        f"difference, meta {_share}": _ours("difference", "all", _meta),
        # lookahead with its graph 3, then back through the backward alone: 2
        f"double backward, meta {_share}": _rival("double backward", 5.0, _meta),
        f"TorchOpt, meta {_share}": _rival("TorchOpt", 5.0, _meta),
        f"Betty, meta {_share}": _rival("Betty", 2.0, _meta),
    }

DOUBLE = "double backward"
_EXACT = ("head", "forward", "difference", DOUBLE)
SLOW_ROWS = ("plain", "distillation by hand", "fixed", "trust", "denoise", *(f"{each}, meta 1/2" for each in _EXACT))
"""The rows that have a target, for models on which a step takes long."""


# ---- rivals: the same meta-gradient at ε = 0, ∂V(θ − ∇(ε·ℓ))/∂ε = −⟨∇ℓ(θ), ∇V(θ)⟩ / N ----


def _torchopt(problem: MetaProblem) -> Tensor:
    import torchopt

    weights, params = problem.weights.clone().requires_grad_(), _leaves(problem.params)
    optimizer = torchopt.sgd(lr=1.0)
    with sdpa_kernel(SDPBackend.MATH):
        loss = (weights * problem.losses(params)).sum() / problem.n
        grads = torch.autograd.grad(loss, [*params.values()], create_graph=True, materialize_grads=True)
        updates, _ = optimizer.update(
            dict(zip(params, grads, strict=True)), optimizer.init(params), params=params, inplace=False
        )
        moved = torchopt.apply_updates(params, updates, inplace=False)
        return torch.autograd.grad(problem.val_loss(moved), weights)[0]


def _betty(problem: MetaProblem) -> Tensor:
    """Betty's finite difference. Its engine takes it at the parameters *after* the step; here it is asked at θ."""
    from betty.hypergradient.darts import darts

    weights, params, radius = problem.weights.clone().requires_grad_(), [*problem.params.values()], 0.01
    vector = [*replace(problem, lr=NoStep()).direction().values()]
    student = SimpleNamespace(
        config=SimpleNamespace(darts_alpha=radius, darts_preconditioned=False),
        _strategy="default",
        cur_batch=None,
        trainable_parameters=lambda: params,
        training_step_exec=lambda _: (weights * problem.losses(problem.params)).sum() / problem.n,
    )
    (found,) = darts(vector, student, SimpleNamespace(trainable_parameters=lambda: [weights]), False)
    # betty-ml <= 0.2.0 leaves the parameters at θ − εv: its last loop adds out of place
    epsilon = radius / torch.cat([v.flatten() for v in vector]).norm().item()
    for p, v in zip(params, vector, strict=True):
        p.data.add_(v, alpha=epsilon)
    return found


def _leaves(params: Tensors) -> Tensors:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


RIVALS: dict[str, Callable[[MetaProblem], Tensor]] = {
    "double backward": DoubleBackward(),
    "TorchOpt": _torchopt,
    "Betty": _betty,
}


class ByHand(Trainer):
    """Cross-entropy plus distillation from cached logits, as one writes it."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        inputs = dict(inputs)
        labels, teacher = inputs.pop("labels"), inputs.pop("teacher_logits")
        logits = model(**inputs).logits
        student = (logits / TEMPERATURE).log_softmax(-1)
        apart = F.kl_div(student, (teacher / TEMPERATURE).softmax(-1), reduction="batchmean")
        return F.cross_entropy(logits, labels) + TEMPERATURE**2 * apart


class Weighted(Trainer):
    """The least that a rival needs: a weight per row and source, moved by its meta-gradient before the step."""

    losses: Mapping[str, Any]

    def start(self, rival: str, stack: LossStack, clean: dict[str, Tensor]) -> None:
        """`clean`: one batch of clean rows."""
        self.rival, self.stack, self.clean = rival, stack, clean
        self.weights: Tensor | None = None
        self.asked: Tensor | None = None

    def problem(self, inputs: dict[str, Any]) -> MetaProblem:
        """ε = 0 and a step of length 1: the meta-gradient of `lookahead="none"`, unscaled."""
        read = self.accelerator.unwrap_model(self.model)
        labels = self.clean["labels"]
        student = PureModel(read, model_inputs(inputs), training=True, noise=RNGState(self.args.device))
        judge = PureModel(read, model_inputs(self.clean), training=False)
        return MetaProblem(
            params=trainable(read),
            weights=torch.zeros(len(inputs["labels"]), len(self.stack), device=self.args.device),
            losses=lambda params: self.stack(student(params), inputs),
            val_loss=lambda params: F.cross_entropy(judge(params).logits.float(), labels),
            lr=1.0,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        model.train()
        if self.weights is None or len(self.weights) != len(inputs["labels"]):
            self.weights = torch.ones(len(inputs["labels"]), len(self.stack), device=self.args.device)
        if self.state.global_step % 2 == 0:
            # half precision would drown Betty's difference; ours runs in float32 as well
            with in_float32(self.accelerator.unwrap_model(self.model)) if self.rival == "Betty" else nullcontext():
                self.asked = RIVALS[self.rival](self.problem(inputs)).detach()
            self.weights = (self.weights - 0.2 * self.asked).clamp(0, 2)
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        assert self.weights is not None
        losses = self.stack(model_outputs(model(**model_inputs(inputs))), inputs)
        return (self.weights * losses).sum(1).mean()


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class Stepper:
    """One row of the table as a trainer, a batch, and `step`.

    Args:
        name: of `ROWS`.
        config: more fields of the trainer's arguments.
    """

    def __init__(self, scene: Scene, name: str, **config: Any) -> None:
        self.row, on_gpu = ROWS[name], torch.cuda.is_available()
        model = scene.student()
        train = scene.rows(4 * scene.batch, 0, model.config.vocab_size)
        clean = scene.rows(scene.clean, 1, model.config.vocab_size)
        settings: dict[str, Any] = {
            "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": scene.batch, "learning_rate": 1e-5,
            "max_steps": 10**6, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
            "use_cpu": not on_gpu, "bf16": scene.precision == "bf16", "dataloader_pin_memory": False, **config,
        }  # fmt: skip
        self.trainer = self._trainer(name, scene, model, train, clean, settings)
        self.trainer.state = TrainerState(max_steps=10**6)
        self.trainer.current_gradient_accumulation_steps = 1
        self.model, _ = self.trainer._prepare_for_training(10**6, None, None)
        columns = self.trainer._remove_unused_columns(self.trainer.train_dataset, "training")
        self.features = [columns[i] for i in range(scene.batch)]
        self.batch = self.trainer._prepare_inputs(self.trainer.data_collator(self.features))

    def _trainer(
        self, name: str, scene: Scene, model: Any, train: Dataset, clean: Dataset, settings: dict[str, Any]
    ) -> Trainer:
        if self.row.config is not None:
            return self._amal(model, train, clean, settings, round(self.row.meta * scene.batch))
        kind: type[Trainer] = Weighted if self.row.rival else ByHand if name == "distillation by hand" else Trainer
        train = train.select_columns(["input_ids", "attention_mask", "label", "teacher_logits"])
        arguments = TrainingArguments(**settings, remove_unused_columns=kind is Trainer)
        trainer = kind(model, arguments, train_dataset=train)
        if isinstance(trainer, Weighted):
            columns = ["input_ids", "attention_mask", "label"]
            rows = clean.select_columns(columns).select(range(round(self.row.meta * scene.batch)))
            batch = trainer._prepare_inputs(trainer.data_collator([*rows]))
            trainer.start(self.row.rival, LossStack(_pair(), train[0] | {"labels": 0}), batch)
        return trainer

    def _amal(
        self, model: Any, train: Dataset, clean: Dataset, settings: dict[str, Any], meta_batch: int
    ) -> AMALTrainer:
        given = dict(self.row.config or {})
        losses: dict[str, Any] = _pair()
        if given.get("method") == "denoise":
            losses = {"rules": LabelingFunctions()}
        else:
            train = train.remove_columns([LOG_POSTERIOR, PROBE, CLEAN_LABEL, "weak_labels"])
        if self.row.every:  # lookaheads at even steps, from the first
            given |= {"meta_every": 2, "meta_start": 0.0, "meta_batch_size": meta_batch}
        arguments = AMALConfig(**{**settings, **given})
        clean = clean.select_columns(["input_ids", "attention_mask", "label"])
        trainer = AMALTrainer(model, arguments, losses=losses, train_dataset=train, clean_dataset=clean)
        if given.get("method") == "denoise":  # its rows have their columns already: no tokenizer is there to read them
            trainer.prepared = Prepared(trainer.given_rows, clean, [1.0] * (len(trainer.stack) + len(ADDED)))
            trainer.start_afresh(training=True)
        return trainer

    def step(self, due: bool = True, rows: int | None = None) -> None:
        """What `Trainer`'s loop does for the batch, or for its first rows; with a lookahead where `due`."""
        trainer = self.trainer
        ahead = trainer.state.global_step + 1
        trainer.state.global_step = ahead + int((ahead % 2 == 0) != due)
        batch = {name: value[:rows] for name, value in self.batch.items()}
        count = None
        if isinstance(trainer, AMALTrainer):  # where λ needs no forward, it is folded into the batch here
            (batch,), count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        loss = trainer.training_step(self.model, batch, count)
        assert not (torch.isnan(loss) or torch.isinf(loss))  # `logging_nan_inf_filter`: the loop waits for a GPU here
        trainer.floating_point_ops(batch)
        trainer._get_grad_norm(self.model, grad_norm=trainer._clip_grad_norm(self.model))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()


def _pair() -> dict[str, Any]:
    return {"label": CrossEntropy(), "teacher": Distillation("teacher_logits", temperature=TEMPERATURE)}
