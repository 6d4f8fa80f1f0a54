"""`AMALConfig`, a `TrainingArguments` dataclass, and the table of methods."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from amal_hf import _checks

METHODS: dict[str, dict[str, Any]] = {
    # Our default. Against "amal": trust instead of a free table (rows share what they learn about a
    # source, and a row where nobody is right weighs little); refreshed inside every training step, so
    # it works in 3 epochs instead of 100; V on all clean rows at once, and blended with a head retrained
    # from zero, because the one-step lookahead favours whichever source has the larger residual.
    "trust": {"mixing": "trust", "probe_weight": 0.7, "meta_every": 10, "meta_start": 0.1, "normalize": "mean"},
    # The authors' settings: free table in a box, last layer, plain SGD lookahead, α = 1500, a pass over
    # the training set every 10 epochs with 5 repetitions a group; label 0.1, teachers 0.9.
    "amal": {
        "mixing": "instance",
        "constraint": "box",
        "refresh": "epoch",
        "refresh_every": 10,
        "refresh_repeats": 5,
        "lookahead": "sgd",
        "mixing_scale": "raw",
        "mixing_lr": 1500.0,
        "mixing_start": [0.1, 0.9],
        "meta_batch_size": 1000,
    },
    # AMAL's table inside the training step: a unit-length direction makes κ free of scale, and centring
    # holds the mean weight, which otherwise drifts to a clamp.
    "amal-step": {"mixing": "instance", "constraint": "box", "lookahead": "sgd", "center": True},
    # Version 1 of the same paper: a convex mixture per row.
    "alm-kd": {"mixing": "instance", "constraint": "simplex", "lookahead": "sgd"},
    "shared": {"mixing": "shared", "constraint": "simplex", "lookahead": "sgd"},
    # Learning to reweight: the rectified meta-gradient of the whole network is the weight, at θ′ = θ, anew at every
    # step. (Steered by the head alone it is another method, and a poor one.)
    "l2r": {"mixing": "reweight", "lookahead_params": "all"},
    # Meta-Weight-Net: losses in, weights out. Held at mean 1 (the original is not): the net may sink every weight.
    "meta-weight-net": {"mixing": "meta-weight-net", "lookahead": "sgd", "mixing_lr": 1e-3, "normalize": "mean"},
    # A network that also reads votes and agreement; steered as "trust" is, twice as often.
    "network": {
        "mixing": "network",
        "mixing_lr": 1e-3,
        "probe_weight": 0.7,
        "meta_every": 5,
        "meta_start": 0.1,
        "normalize": "mean",
    },
    # The default of `amal-hf train`: what the clean rows know is asked once, before training (`amal_hf.denoising`), so
    # that they can be trained on as well. No lookahead and no further forward: a step costs what a plain one does.
    "denoise": {"mixing": "corrected", "normalize": "mean", "posterior_column": "evidence"},
    # The incumbent: hand-set weights, all equal unless `mixing_start` says otherwise.
    "fixed": {"mixing": "fixed"},
}

# A table starves a regression: residuals are unbounded, and one visit takes a row to 0 or 2. What a loss is worth is
# learned once for all rows here, and rows of a stream have it too.
WITHOUT_CLASSES = "meta-weight-net"
"""The method of a head that does not name one class a row, where none is given."""

PREDICTED = ("meta-weight-net", "network")
"""Mixings that are networks, learned by Adam: κ of a table would be far too large a step."""

DEFAULTS: dict[str, Any] = {
    "mixing": "trust",
    "constraint": "box",
    "clamp": [1e-7, 2 - 1e-7],
    "mixing_start": [1.0],
    "mixing_lr": 0.2,
    "mixing_scale": "unit",
    "center": False,
    "normalize": "none",
    "table_dtype": "float32",
    "refresh": "step",
    "refresh_every": 1,
    "refresh_repeats": 1,
    "meta_every": 1,
    "meta_start": 0.0,
    "meta_batch_size": 64,
    "lookahead": "none",
    "lookahead_params": "head",
    "estimator": "auto",
    "probe_weight": 0.0,
    "posterior_column": "",
    "slow_decay": 0.98,
    "slow_start": 0.3,
}


def _knob(help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} (default: the method's)"})


@dataclass
class AMALConfig(TrainingArguments):
    """`TrainingArguments` plus how the mixture is learned. Unset fields take the method's value.

    Everything `TrainingArguments` accepts is accepted, with its defaults. After construction no
    field below is None: `to_dict`, the command line and HP search see the values in force.

    Args:
        method: "trust" (default; in `amal-hf train`, which prepares its evidence, "denoise"), "amal", "amal-step",
            "alm-kd", "shared", "l2r", "meta-weight-net", "network", "denoise" or "fixed"; see `METHODS`. In "trust" and
            "denoise" sources compete with the classes they name, so a regression or multi-label head refuses them, and
            takes "meta-weight-net" where none is given.
        mixing: "trust", "instance" (a table), "shared" (a vector), "reweight" (no memory), "meta-weight-net" or
            "network" (predicted), "corrected" (from a column of evidence) or "fixed".
        constraint: "box" or "simplex", for "instance" and "shared".
        clamp: [low, high] of the box.
        mixing_start: λ at the start: one number, or one per source; "meta-weight-net" starts where its network does.
        mixing_lr: κ, the step on the meta-gradient; Adam's learning rate where a network predicts the weights.
        mixing_scale: "unit" (v of unit length: κ is free of learning rate and batch) or "raw" (E1).
        center: subtract each micro-batch's mean meta-gradient per block of sources: the mean weight stays
            (so splitting a batch changes it a little, unlike everything else here).
        normalize: "none", "row" (each row's weights sum to 1) or "mean" (their running mean does).
        table_dtype: "float32" or "float16", of what is kept for every row: λ of a table, and the last weights. In
            float16 100,000,000 rows of 3 sources take 600 MB each.
        refresh: "step" (inside `training_step`) or "epoch" (a pass over the training set).
        refresh_every, refresh_repeats: epochs between passes; steps on λ per group of a pass.
        meta_every: optimizer steps between lookaheads; with the head, v is reused in between.
        meta_start: optimizer steps before the first lookahead; below 1, their share of all steps.
        meta_batch_size: clean rows encoded per lookahead.
        lookahead: the virtual step: "none" (θ′ = θ), "sgd", "optimizer" (Adam with its
            preconditioner frozen) or "optimizer-exact".
        lookahead_params: "head" (the final linear layer) or "all". They are *different* derivatives,
            so this is your choice and never `auto`'s.
        estimator: "auto", "head", "forward", "difference" or "double" — how that derivative is computed.
        probe_weight: share of the retrained-head direction in v, 0..1; needs the head, and one class a row (0 with
            every other task).
        posterior_column: log-probabilities `[C]` of a row's class, known before training (`amal_hf.denoising`).
        slow_decay: d of the student's slow copy, where `SlowCopy` is among the losses.
        slow_start: optimizer steps before the copy says anything; below 1, their share of all steps.

    Raises:
        ValueError: an unknown name or a number out of range, with what was expected and found.

    Example:
        >>> args = AMALConfig("out", method="amal", mixing_lr=1000.0)
        >>> args.mixing, args.refresh, args.mixing_lr
        ('instance', 'epoch', 1000.0)
    """

    # --- What is mixed how ---
    method: str = field(default=None, metadata={"help": f"One of {', '.join(METHODS)} (default: trust)"})  # type: ignore[assignment]
    mixing: str = _knob("trust | instance | shared | reweight | meta-weight-net | network | corrected | fixed")
    constraint: str = _knob("box | simplex")
    clamp: list[float] = _knob("low and high of the box")
    mixing_start: list[float] = _knob("start of λ: one number, or one per source")
    mixing_lr: float = _knob("κ, step of λ")
    mixing_scale: str = _knob("unit | raw")
    center: bool = _knob("centre the meta-gradient per source over the batch")
    normalize: str = _knob("none | row | mean")
    table_dtype: str = _knob("float32 | float16, of what is kept for every row")
    # --- When ---
    refresh: str = _knob("step | epoch")
    refresh_every: int = _knob("epochs between passes (refresh=epoch)")
    refresh_repeats: int = _knob("steps on λ per group of a pass (refresh=epoch)")
    meta_every: int = _knob("optimizer steps between lookaheads")
    meta_start: float = _knob("steps before the first lookahead; below 1: share of all steps")
    # --- The lookahead ---
    meta_batch_size: int = _knob("clean rows per lookahead")
    lookahead: str = _knob("none | sgd | optimizer | optimizer-exact")
    lookahead_params: str = _knob("head | all")
    estimator: str = _knob("auto | head | forward | difference | double")
    probe_weight: float = _knob("share of the retrained-head direction, 0..1")
    # --- What is known beforehand, and what the student has learned ---
    posterior_column: str = _knob("column of log-probabilities known before training")
    slow_decay: float = _knob("d of the student's slow copy")
    slow_start: float = _knob("steps before the slow copy speaks; below 1: share of all steps")
    # --- Data ---
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "Columns to tokenize"})
    max_length: int = field(default=128, metadata={"help": "Tokens kept per row"})
    strict: bool = field(default=False, metadata={"help": "Refuse overlapping splits instead of warning"})
    log_weights: bool = field(default=True, metadata={"help": "Log λ and keep each row's last weights"})

    def __post_init__(self) -> None:
        left = [name for name in ("method", *DEFAULTS) if getattr(self, name) is None]
        self.method = "trust" if self.method is None else self.method
        self._follow_recipe()
        self._left = {name: getattr(self, name) for name in left}
        if isinstance(self.mixing_start, (int, float)):
            self.mixing_start = [float(self.mixing_start)]
        super().__post_init__()
        self._check()

    def _follow_recipe(self) -> None:
        """Fields that are None take their values from the method."""
        _checks.one_of("method", self.method, METHODS)
        method = dict(METHODS[self.method])
        if self.mixing not in (None, method["mixing"]):
            # another mixing than the method's: of the method, only what is not about its mixing holds
            method = {"mixing": self.mixing}
            if self.mixing in PREDICTED:
                method["mixing_lr"] = METHODS[self.mixing]["mixing_lr"]
        if self.lookahead_params == "all":
            method.pop("probe_weight", None)  # the probe is a head
        for name, value in {**DEFAULTS, **method}.items():
            if getattr(self, name) is None:
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def following(self, method: str) -> AMALConfig:
        """These settings with another method, unless a method or a mixing was given; what was given stays."""
        settings, left = copy(self), self._unset()
        if {"method", "mixing"} <= left:
            settings.method = method
            for name in left - {"method"}:
                setattr(settings, name, None)
            settings._follow_recipe()
            settings._left = {name: getattr(settings, name) for name in left}
        return settings

    def without_classes(self) -> AMALConfig:
        """These settings for a head that does not name one class a row; what was given stays as it was given."""
        settings = self.following(WITHOUT_CLASSES)
        if "probe_weight" in self._unset():
            settings.probe_weight = 0.0
        return settings

    def with_clean_evidence(self) -> AMALConfig:
        """Recipe "denoise" for a run that can prepare its evidence, unless anything about the mixture was given."""
        lookahead = {*DEFAULTS} - {*METHODS["denoise"], "slow_decay", "slow_start", "table_dtype"}
        return self.following("denoise") if lookahead <= self._unset() else copy(self)

    def _unset(self) -> set[str]:
        """Fields that nobody has given, at construction or later."""
        return {name for name, value in self._left.items() if getattr(self, name) == value}

    def _check(self) -> None:
        allowed = {
            "mixing": ("trust", "instance", "shared", "reweight", *PREDICTED, "corrected", "fixed"),
            "constraint": ("box", "simplex"),
            "mixing_scale": ("unit", "raw"),
            "normalize": ("none", "row", "mean"),
            "table_dtype": ("float32", "float16"),
            "refresh": ("step", "epoch"),
            "lookahead": ("none", "sgd", "optimizer", "optimizer-exact"),
            "lookahead_params": ("head", "all"),
            "estimator": ("auto", "head", "forward", "difference", "double"),
        }
        for name, values in allowed.items():
            _checks.one_of(name, getattr(self, name), values)
        for name in ("mixing_lr", "refresh_every", "refresh_repeats", "meta_every", "meta_batch_size", "max_length"):
            _checks.positive(name, getattr(self, name))
        _checks.positive("meta_start", self.meta_start, zero=True)
        _checks.positive("slow_start", self.slow_start, zero=True)
        _checks.between("slow_decay", self.slow_decay, 0.0, 1.0)
        _checks.between("probe_weight", self.probe_weight, 0.0, 1.0)
        pair = isinstance(self.clamp, (list, tuple)) and [isinstance(x, (int, float)) for x in self.clamp] == [True] * 2
        if not pair or not self.clamp[0] < self.clamp[1]:
            raise ValueError(
                f"`clamp`: expected two numbers [low, high] with low < high, found {self.clamp!r}. Set it to such a "
                "pair, or leave it out."
            )
        if self.lookahead_params == "all":
            for name, head_only in {"probe_weight": self.probe_weight, "estimator": self.estimator == "head",
                                    "refresh": self.refresh == "epoch"}.items():  # fmt: skip
                if head_only:
                    raise ValueError(
                        f"`{name}`: {getattr(self, name)!r} works on the head, found lookahead_params='all'. "
                        f"Set lookahead_params='head', or leave `{name}` at its default."
                    )
        elif self.estimator not in ("auto", "head"):
            raise ValueError(
                f"`estimator`: the head's derivative has the closed form 'head', found {self.estimator!r}. "
                "Set lookahead_params='all' to differentiate the whole network."
            )
        if self.mixing == "corrected" and self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "`train_sampling_strategy`: expected 'random' with method 'denoise', whose clean rows repeat; found "
                "'group_by_length', which would fill batches with copies of one row. Set it to 'random'."
            )
        if self.mixing == "corrected" and not self.posterior_column:
            raise ValueError(
                "`posterior_column`: mixing='corrected' expects a column of log-probabilities, found none. Set "
                "method='denoise', and prepare the trainer's arguments by `with_evidence`."
            )
        if self.mixing in ("trust", "reweight", "corrected", *PREDICTED) and self.refresh == "epoch":
            raise ValueError(
                f"`refresh`: mixing={self.mixing!r} has no table to refresh; expected 'step', found 'epoch'."
            )

    def describe(self) -> str:
        """The fields above as one JSON line, for model cards and logs."""
        return json.dumps({"method": self.method, **{name: getattr(self, name) for name in DEFAULTS}})
