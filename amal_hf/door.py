"""What a trainer is given, as it works on it: a model for its name, indices for classes, votes for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchStream
from transformers import AutoTokenizer, set_seed

from amal_hf import _checks
from amal_hf._types import LABELS
from amal_hf.config import AMALConfig
from amal_hf.data.class_columns import ANSWERS, has_negative, indexed
from amal_hf.data.classes import infer_classes, name_classes
from amal_hf.data.columns import LABEL_ALIASES, label_column, values_of, with_row_ids
from amal_hf.data.tokens import in_tokens
from amal_hf.data.validate import validate_inputs
from amal_hf.labeling.formats import distributions_from_columns, votes_from_columns
from amal_hf.losses import CrossEntropy, Distillation, LabelingFunctions, LossStack
from amal_hf.losses.annotators import Annotators
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.mixing import Mixing
from amal_hf.models.class_order import GENERIC
from amal_hf.models.student import load_student

ONE_CLASS = (None, SINGLE_LABEL)
"""Problem types of a model whose rows may have one class each."""
VOTES = "amal_votes_"
"""How columns of votes begin that were made of annotators' answers."""


@dataclass(frozen=True)
class Given:
    """What a trainer was given, checked, and as it works on it.

    Args:
        model: the student; None where a function makes it.
        tokenizer: of its texts, where there is one.
        classes: their names, as `known_classes` finds them.
        stack: the K sources, `Annotators` as labeling functions or distributions.
        example: a training row without missing values.
        splits: train, clean and eval: tokens for texts, indices for classes, votes for answers, `row_id` for train.
        mixing: in place of the method's.
    """

    model: Any
    tokenizer: Any
    classes: list[str] | None
    stack: LossStack
    example: Mapping[str, Any]
    splits: Mapping[str, Any]
    mixing: Mixing | None


def enter(
    model: Any,
    args: Any,
    losses: Mapping[str, Any],
    splits: Mapping[str, Any],
    mixing: Mixing | None,
    others: Mapping[str, Any],
) -> Given:
    """What a trainer was given, after every check that needs no trainer.

    Args:
        model: a module, a function that makes it, or a name.
        args: an `AMALConfig`; its seed is that of the head of a model given by name.
        losses: name -> source.
        splits: train, clean and eval.
        mixing: in place of the method's.
        others: what else `Trainer` takes.

    Raises:
        ValueError: something is not as it must be, with what was expected and found.
        OSError: `output_dir` cannot be written.
    """
    _checks.of_type("args", args, AMALConfig, "an AMALConfig", "It takes everything TrainingArguments takes.")
    splits = {name: as_rows(f"{name}_dataset", split) for name, split in splits.items()}
    classes = known_classes(model, splits)
    losses, rows = as_votes(losses, {name: in_classes(split, classes) for name, split in splits.items()}, classes)
    model, tokenizer = as_model(model, classes, args.seed)
    stack, example = validate_inputs(args, model or others.get("model_init"), losses, rows, mixing, others)
    tokenizer = others.get("processing_class") or tokenizer
    if isinstance(rows["train"], Dataset):
        rows["train"] = with_row_ids(rows["train"])
    called = {"train": "train_dataset"}  # where it has a name, texts that are cut are counted and warned of
    rows = {name: in_tokens(split, tokenizer, args, called.get(name, "")) for name, split in rows.items()}
    return Given(model, tokenizer, classes, stack, example, rows, mixing)


def as_rows(argument: str, split: Any) -> Any:
    """Rows that are made as they are read (by a transform, or a dataset of torch's) as columns; others as they are.

    Raises:
        ValueError: rows that are no mappings, or differ from one reading to the next.
    """
    if isinstance(split, dict) and argument == "eval_dataset":
        return {name: as_rows(f"{argument}[{name!r}]", each) for name, each in split.items()}
    lazy = split.format["type"] == "custom" if isinstance(split, Dataset) else isinstance(split, TorchDataset)
    if not lazy or isinstance(split, (IterableDataset, TorchStream)) or not hasattr(split, "__len__") or not len(split):
        return split
    rows = [split[i] for i in range(len(split))]
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"`{argument}`: expected rows that are mappings from columns, found {type(rows[0]).__name__}. Return "
            "{'input_ids': ..., 'label': ...}, or pass a datasets.Dataset."
        )
    rows = [{name: _plain(value) for name, value in row.items()} for row in rows]
    again = [{name: _plain(value) for name, value in split[i].items()} for i in range(min(len(split), 8))]
    if again != rows[:8]:
        raise ValueError(
            f"`{argument}`: expected rows that are the same at every reading, since each keeps its weights; found "
            "others at a second one. Augment in `data_collator`, or once, with datasets' map."
        )
    made = Dataset.from_list(rows)
    if isinstance(split, Dataset):
        kept = {name: f for name, f in split.features.items() if isinstance(f, ClassLabel) and name in made.features}
        made = made.cast(Features({**made.features, **kept}))
    return made


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def known_classes(model: Any, splits: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes: the model's, where they say something, else the clean rows', else those that labels name.

    None where a row has no single class; empty where it has one, and nothing names them.

    Raises:
        ValueError: labels that are names here and numbers there, or more or fewer than the model's classes.
    """
    config = getattr(model, "config", None)
    if config is not None and (config.num_labels == 1 or getattr(config, "problem_type", None) not in ONE_CLASS):
        return None
    names = [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
    if names and not all(map(GENERIC.fullmatch, names)):
        return names
    labels = {name: label_column(split) for name, split in splits.items() if isinstance(split, Dataset)}
    holding = {
        name: splits[name].select_columns([c]).rename_columns({c: "label"} if c != "label" else {})
        for name, c in labels.items()
        if c
    }
    holding = {name: split for name, split in holding.items() if values_of(split, "label").null_count < len(split)}
    for name in ("clean", *holding):
        if name in holding and isinstance(feature := holding[name].features["label"], ClassLabel):
            return list(feature.names)
    words = [name for name, split in holding.items() if _is_text(split)]
    if not words and not isinstance(model, str):
        return []
    found = infer_classes(holding, "label") if isinstance(model, str) or len(words) == len(holding) else []
    if config is not None and len(found) != config.num_labels:
        raise ValueError(
            f"`{words[0]}_dataset`: expected indices of the model's {config.num_labels} classes, or the "
            f"names of as many in every split, found names in {words} of {[*holding]}: {found[:5]}. Give the model "
            "its names in `id2label`, or encode labels alike."
        )
    return found


def in_classes(split: Any, classes: list[str] | None) -> Any:
    """A data set whose labels are indices of classes, null where there is none; a dictionary of them likewise.

    Args:
        split: rows; what is no `Dataset`, or has several classes or a number a row, stays as it is.
        classes: as `known_classes` finds them.

    Raises:
        ValueError: a label that is no class, with how many rows have it.
    """
    if isinstance(split, dict):
        return {name: in_classes(each, classes) for name, each in split.items()}
    if classes is None or not isinstance(split, Dataset) or label_column(split) is None:
        return split
    column = str(label_column(split))
    hubs = isinstance(split.features[column], ClassLabel) and has_negative(split, column)  # -1: no label
    if _is_text(split) or hubs:
        names = classes or getattr(split.features[column], "names", None)
        if not names:
            raise ValueError(
                f"`{column}`: expected indices of the model's classes, whose names nobody gave, found names. Give the "
                "model its names in `id2label`."
            )
        return name_classes(DatasetDict({"rows": split}), column, names)["rows"]
    return indexed(split, column)


def as_votes(
    losses: Mapping[str, Any], splits: Mapping[str, Any], classes: list[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses in which `Annotators` are labeling functions, or distributions where they say how sure they are; splits
    with the columns that these read, and indices in columns of classes' names that a `CrossEntropy` reads.

    Raises:
        ValueError: a column that is not there or read twice, answers that are no class, or classes that nothing names.
    """
    if isinstance(losses, Mapping):
        splits = _as_indices(losses, splits, classes)
    if not isinstance(losses, Mapping) or not any(isinstance(loss, Annotators) for loss in losses.values()):
        return losses, dict(splits)  # type: ignore[return-value]
    check_once({name: loss.columns for name, loss in losses.items() if isinstance(loss, Annotators)})
    made, rows = dict[str, Any](), dict(splits)
    for name, loss in losses.items():
        if not isinstance(loss, Annotators):
            made[name] = loss
            continue
        if isinstance(rows["train"], Dataset):
            _checks.columns("train_dataset", rows["train"].column_names, {name: sorted(loss.reads)})
        if not classes:
            raise ValueError(
                f"`losses`: expected the names of the classes, to read the answers of {loss!r}; found none. Give the "
                "model `id2label`, or the clean rows a ClassLabel."
            )
        asked = {
            split: each
            for split, each in rows.items()
            if split != "eval" and isinstance(each, Dataset)
            if split == "train" or loss.reads <= {*each.column_names}
        }
        if not loss.confidence:
            column = VOTES + name
            rows |= {s: votes_from_columns(each, loss.columns, classes, column=column) for s, each in asked.items()}
            made[name] = LabelingFunctions(column, loss.columns)
        for answer, confidence in zip(loss.columns, loss.confidence, strict=bool(loss.confidence)):
            column = f"{ANSWERS}{name}_{answer}"
            asked = distributions_from_columns(asked, answer, confidence, classes, column)
            rows |= asked
            made[f"{name}/{answer}"] = Distillation(column, temperature=1.0, probabilities=True)
    return made, rows


def _as_indices(losses: Mapping[str, Any], splits: Mapping[str, Any], classes: list[str] | None) -> Mapping[str, Any]:
    """The splits; columns beside the label in which a `CrossEntropy` finds names of classes hold indices."""
    columns = {loss.column for loss in losses.values() if isinstance(loss, CrossEntropy)} - {LABELS, *LABEL_ALIASES}
    made = dict(splits)
    for column in columns if classes else ():
        for name, split in made.items():
            if isinstance(split, Dataset) and column in split.column_names and names_class(split.features[column]):
                made[name] = name_classes(DatasetDict({name: split}), column, classes)[name]
    return made


def check_once(columns: Mapping[str, Sequence[str]]) -> None:
    """No annotator stands in two sources: what it says would count twice.

    Raises:
        ValueError: naming column and sources.
    """
    taken: dict[str, str] = {}
    for source, own in columns.items():
        for column in own:
            if column in taken:
                raise ValueError(
                    f"`losses`: expected every annotator in one source, found {column!r} in {taken[column]!r} and "
                    f"{source!r}, where it would count twice. Leave it out of one."
                )
            taken[column] = source


def as_model(model: Any, classes: list[str] | None, seed: int) -> tuple[Any, Any]:
    """The student of a name, and its tokenizer; a model as it is, and None.

    Raises:
        ValueError: a name, and no classes for its head.
        FileNotFoundError: no such model.
    """
    if not isinstance(model, str):
        return model, None
    if not classes:
        raise ValueError(
            "`clean_dataset`: expected rows with a `label`, to know the classes of the model's head; found none. Pass "
            "clean rows, or a model that has its classes."
        )
    set_seed(seed)
    return load_student(model, classes), AutoTokenizer.from_pretrained(model)


def _is_text(split: Dataset) -> bool:
    """Whether labels name their class."""
    return names_class(split.features[str(label_column(split))])


def names_class(feature: Any) -> bool:
    """Whether a column holds names of classes: a text or a boolean, a list of one text, or Label Studio's choices."""
    if isinstance(feature, dict) and set(feature) == {"choices"}:
        feature = feature["choices"]
    words = ("string", "large_string")
    if isinstance(feature, Value):
        return feature.dtype in (*words, "bool")
    return getattr(getattr(feature, "feature", None), "dtype", "") in words  # of a list
