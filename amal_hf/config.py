"""`AMALConfig`: `TrainingArguments` plus how the mixture is learned."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from amal_hf import _checks
from amal_hf.methods import DEFAULTS, METHODS, POOLINGS, PREDICTED, READS


def _knob(help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} (default: the method's)"})


@dataclass
class AMALConfig(TrainingArguments):
    """`TrainingArguments` plus how the mixture is learned. A setting that is None takes the method's value.

    Everything `TrainingArguments` accepts is accepted, with its defaults. `resolved()` are the values in force; they
    are looked up when training starts, so what was set last is what runs (constructor, attribute, `replace`, search).

    Args:
        method: "denoise" (default), "trust", "amal", "amal-step", "alm-kd", "shared", "l2r", "meta-weight-net",
            "network", "fixed", or "custom" with a `mixing`; see `amal_hf.methods`. In "trust" and "denoise" sources
            compete with the classes they name, so a regression or multi-label head refuses them.
        mixing: "trust", "instance" (a table), "shared" (a vector), "reweight" (no memory), "meta-weight-net" or
            "network" (predicted), "corrected" (from the column `log_posterior`) or "fixed".
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
        reader: the encoder that the label model of "denoise" sees rows through: a folder or Hub name, "student" (the
            student's own as it starts), or a column of vectors `[H]` in training and clean rows. "": the student's
            checkpoint with all of its layers, where the student was cut to its first ones; else as "student".
        reader_layers: its layers, read side by side; -1 is the last, 0 the embeddings. []: the one at two thirds of
            the depth, at twice the length, and the last, of four layers and more; else the last.
        reader_pooling: "mean", "cls" (first token) or "last" (token), of its last layer; the others are means. "auto":
            as a sentence encoder's own files say, else "mean".
        reader_prompt: put before every text that it reads; "": its own default prompt, where its files name one.

    Raises:
        ValueError: an unknown name or a number out of range, with what was expected and found.

    Example:
        >>> args = AMALConfig("out", method="amal", mixing_lr=1000.0).resolved()
        >>> args.mixing, args.refresh, args.mixing_lr
        ('instance', 'epoch', 1000.0)
    """

    # --- What is mixed how ---
    method: str = field(default="denoise", metadata={"help": f"One of {', '.join(METHODS)}"})
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
    # --- The reader, under "denoise" ---
    reader: str = _knob("encoder (or column of vectors) that reads rows before training; student: the student's")
    reader_layers: list[int] = _knob("its layers, side by side")
    reader_pooling: str = _knob("auto | mean | cls | last, of its last layer")
    reader_prompt: str = _knob("text before every row that it reads")
    # --- Data ---
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "Columns to tokenize"})
    max_length: int = field(default=128, metadata={"help": "Tokens kept per row"})
    strict: bool = field(default=False, metadata={"help": "Refuse overlapping splits instead of warning"})
    log_weights: bool = field(default=True, metadata={"help": "Log λ and keep each row's last weights"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resolved()

    def resolved(self) -> AMALConfig:
        """A copy in which every setting has the value in force: the one given, else the method's, else the default.

        Raises:
            ValueError: a setting that the method does not read, an unknown name, a number out of range.
        """
        _checks.one_of("method", self.method, METHODS)
        settings, values = copy(self), self._of_the_method()
        given = {name for name in DEFAULTS if getattr(self, name) is not None}
        self._refuse_unread(given - {"mixing"}, self.mixing or values["mixing"])
        for name, value in values.items():
            if name not in given:
                setattr(settings, name, list(value) if isinstance(value, list) else value)
        for name in ("mixing_start", "clamp"):
            if isinstance(getattr(settings, name), (int, float)):
                setattr(settings, name, [float(getattr(settings, name))])
        settings._check()
        return settings

    def _of_the_method(self) -> dict[str, Any]:
        values = {**DEFAULTS, **METHODS[self.method]}
        if self.method == "custom":
            values |= {"mixing_lr": METHODS[self.mixing]["mixing_lr"]} if self.mixing in PREDICTED else {}
        elif self.mixing not in (None, values["mixing"]):
            raise ValueError(
                f"`mixing`: expected {values['mixing']!r}, which method {self.method!r} has, found {self.mixing!r}. "
                "Leave it out, or set method='custom'."
            )
        if self.lookahead_params == "all":
            values["probe_weight"] = 0.0  # the probe is a head
        return values

    def _refuse_unread(self, given: set[str], mixing: str) -> None:
        if mixing in READS and (unread := sorted(given - {*READS[mixing]})):
            raise ValueError(
                f"`{unread[0]}`: expected it with a method that reads it, found {getattr(self, unread[0])!r} with "
                f"method={self.method!r}, which reads {sorted(READS[mixing])}. Leave it out, or choose another method, "
                "e.g. 'trust' or 'amal-step'."
            )

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
            "reader_pooling": ("auto", *POOLINGS),
        }
        for name, values in allowed.items():
            _checks.one_of(name, getattr(self, name), values)
        for name in ("mixing_lr", "refresh_every", "refresh_repeats", "meta_every", "meta_batch_size", "max_length"):
            _checks.positive(name, getattr(self, name))
        _checks.positive("meta_start", self.meta_start, zero=True)
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

    def describe(self) -> str:
        """The settings in force as one JSON line, for model cards and logs."""
        values = self.resolved()
        return json.dumps({"method": self.method, **{name: getattr(values, name) for name in DEFAULTS}})
