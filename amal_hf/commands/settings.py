"""What a run is given: rows, columns, models, and the sources they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amal_hf import _checks
from amal_hf.door import check_once
from amal_hf.labeling.votes import function_names
from amal_hf.losses import (
    Agreement,
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    Entropy,
    Hint,
    LabelingFunctions,
    MajorityVote,
    PosteriorLabel,
    Relation,
    SquaredError,
)
from amal_hf.losses.annotators import Annotators
from amal_hf.models.student import LOGITS, ModelConfig

ANNOTATORS = "annotators"
"""Column and source of the annotators' votes, `[N, M]`."""

LOSSES: dict[str, Callable[..., Any]] = {
    "annotators": Annotators,
    "cross_entropy": CrossEntropy,
    "distillation": Distillation,
    "labeling_functions": LabelingFunctions,
    "majority_vote": MajorityVote,
    "entropy": Entropy,
    "agreement": Agreement,
    "posterior_label": PosteriorLabel,
    "hint": Hint,
    "relation": Relation,
    "squared_error": SquaredError,
    "binary_cross_entropy": BinaryCrossEntropy,
}


@dataclass
class DataConfig(ModelConfig):
    """Where rows come from, which columns hold their sources and, as `ModelConfig`, which models a run has.

    Args:
        data: a Hub name, a `save_to_disk` folder, a WRENCH folder, or JSONL/CSV/Parquet file(s).
        label_column: class of a row (index or name); true in the clean, selection and test rows.
        train_on_labels: whether the label of *training* rows is a source.
        votes_column: labeling functions' votes, -1 abstains ("": none).
        annotators: columns of answers, one an annotator (a person, an LLM): names or indices of classes, empty where
            they abstain. Together they are the source "annotators".
        sources: further sources, name -> {"loss": name, **arguments}; see `LOSSES`.
        classes: class names in the order of their indices (default: found in the data).
        clean_split: split whose labels are true ("": `clean` or else `validation`, where there is one).
        selection_split: split that chooses the best checkpoint ("": none, unless `selection_rows`).
        test_split: split that is only measured.
        baseline: measure a plain `transformers.Trainer` as well: the same student, start, steps and seed, trained on
            the given labels (without any: the majority vote of the sources) and the clean rows.
        final_epochs: epochs on the clean rows alone, after training (0: none). With hundreds of them it may help; ten
            per class are soon known by heart, and what was learned before is lost.
        clean_rows: clean rows of every class (0: all of the split). Without a split of clean rows, as many are held
            out of train, whose labels are then vouched for.
        selection_rows: rows of every class that select (0: all of `selection_split`); without such a split they are
            held out of the clean rows' split.
    """

    data: str = field(default="", metadata={"help": "Hub name, folder or file"})
    label_column: str = field(default="label", metadata={"help": "Column of the class"})
    train_on_labels: bool = field(default=True, metadata={"help": "Whether the training label is a source"})
    votes_column: str = field(default="", metadata={"help": "Column of labeling functions' votes"})
    annotators: list[str] = field(default_factory=list, metadata={"help": "Columns of annotators' answers"})
    classes: list[str] = field(default_factory=list, metadata={"help": "Class names in order of index"})
    clean_split: str = field(default="", metadata={"help": "Split whose labels are true"})
    selection_split: str = field(default="", metadata={"help": "Split that chooses the best checkpoint"})
    test_split: str = field(default="test", metadata={"help": "Split that is only measured"})
    baseline: bool = field(default=False, metadata={"help": "Measure a plain Trainer on labels or majority vote, too"})
    final_epochs: float = field(default=0.0, metadata={"help": "Epochs on the clean rows alone, after training"})
    clean_rows: int = field(default=0, metadata={"help": "Clean rows of every class (0: all)"})
    selection_rows: int = field(default=0, metadata={"help": "Rows of every class that select (0: all)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = str(Path(self.data).expanduser()) if self.data.startswith("~") else self.data
        for name in ("clean_rows", "selection_rows"):
            _checks.whole(name, getattr(self, name))
            _checks.positive(name, getattr(self, name), zero=True)
        _checks.positive("final_epochs", self.final_epochs, zero=True)


def source_losses(data: DataConfig, sources: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The losses `data` describes, and those of a `sources` mapping.

    Raises:
        ValueError: no source at all, an unknown loss, or arguments it does not take.
    """
    losses: dict[str, Any] = {}
    if data.train_on_labels:
        losses["label"] = CrossEntropy("labels")
    for column in data.teacher_columns:
        named = len(data.teacher_columns) > 1 or data.teacher_names
        name = column.removesuffix(LOGITS) if named else "teacher"
        if name in losses:
            raise ValueError(
                f"`teacher_columns`: expected a name of its own for every source, found {name!r} twice. Give the "
                "teachers other names in `teacher_names`, or rename the column."
            )
        losses[name] = Distillation(column, temperature=data.heat)
    if data.votes_column:
        losses["rules"] = LabelingFunctions(data.votes_column, function_names(data.data, data.votes_column))
    if data.annotators:
        losses[ANNOTATORS] = LabelingFunctions(ANNOTATORS, tuple(data.annotators))
    for name, given in (sources or {}).items():
        if not isinstance(given, Mapping):
            raise ValueError(f"`sources.{name}`: expected `loss: name` and its arguments, found {given!r}.")
        options = dict(given)
        kind = options.pop("loss", None)
        _checks.one_of(f"sources.{name}.loss", kind, LOSSES)
        try:
            losses[name] = LOSSES[kind](**options)
        except TypeError as error:
            raise ValueError(f"`sources.{name}`: {error}. See the arguments of {LOSSES[kind].__name__}.") from error
    answering = {name: loss.columns for name, loss in losses.items() if isinstance(loss, Annotators)}
    check_once({ANNOTATORS: data.annotators, **answering})
    if not losses:
        raise ValueError(
            "`sources`: expected at least one source, found none. Set train_on_labels, votes_column, annotators, "
            "teacher, teacher_columns or `sources`."
        )
    return losses
