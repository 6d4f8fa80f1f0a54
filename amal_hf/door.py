"""What a trainer is given, as it works on it: a model for its name, indices for classes, votes for answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchStream
from transformers import AutoTokenizer, set_seed

from amal_hf import _checks
from amal_hf.config import AMALConfig
from amal_hf.data.classes import has_negative, infer_classes, name_classes
from amal_hf.data.columns import label_column, with_row_ids
from amal_hf.data.tokens import in_tokens
from amal_hf.data.validate import validate_inputs
from amal_hf.labeling.formats import distributions_from_columns, votes_from_columns
from amal_hf.losses import Distillation, LabelingFunctions, LossStack
from amal_hf.losses.annotators import Annotators
from amal_hf.mixing import Mixing
from amal_hf.models.class_order import GENERIC
from amal_hf.models.student import load_student

VOTES, ANSWERS = "amal_votes_", "amal_answers_"
"""How columns of votes, and of distributions, begin that were made of annotators' answers."""


@dataclass(frozen=True)
class Given:
    """What a trainer was given, checked, and as it works on it.

    Args:
        model: the student; None where a function makes it.
        tokenizer: of its texts, where there is one.
        classes: their names; None: nothing names them.
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

    None where nothing names them, or a row has no single class.

    Raises:
        ValueError: labels that are names here and numbers there, or more or fewer than the model's classes.
    """
    config = getattr(model, "config", None)
    names = [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
    if names and not all(map(GENERIC.fullmatch, names)):
        return names
    labels = {name: label_column(split) for name, split in splits.items() if isinstance(split, Dataset)}
    holding = {
        name: splits[name].rename_columns({c: "label"} if c != "label" else {}) for name, c in labels.items() if c
    }
    for name in ("clean", *holding):
        if name in holding and isinstance(feature := holding[name].features["label"], ClassLabel):
            return list(feature.names)
    words = [name for name, split in holding.items() if _is_text(split)]
    if (not words and not isinstance(model, str)) or (config is not None and config.num_labels == 1):
        return None
    found = infer_classes(holding, "label") if len(words) in (0, len(holding)) else []
    if config is not None and len(found) != config.num_labels:
        raise ValueError(
            f"`{words[0]}_dataset`: expected indices of the model's {config.num_labels} classes, or the "
            f"names of as many in every split, found names in {words} of {[*holding]}: {found[:5]}. Give the model "
            "its names in `id2label`, or encode labels alike."
        )
    return found or None


def in_classes(split: Any, classes: list[str] | None) -> Any:
    """A data set whose labels name classes, with their indices; a dictionary of them likewise; others as they are.

    Raises:
        ValueError: a label that is no class, with how many rows have it.
    """
    if isinstance(split, dict):
        return {name: in_classes(each, classes) for name, each in split.items()}
    if classes is None or not isinstance(split, Dataset) or label_column(split) is None:
        return split
    column = str(label_column(split))
    hubs = isinstance(split.features[column], ClassLabel) and has_negative(split, column)  # -1: no label
    if not _is_text(split) and not hubs:
        return split
    return name_classes(DatasetDict({"rows": split}), column, classes)["rows"]


def as_votes(
    losses: Mapping[str, Any], splits: Mapping[str, Any], classes: list[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses in which `Annotators` are labeling functions, or distributions where they say how sure they are; splits
    with the columns that these read.

    Raises:
        ValueError: a column that is not there, answers that are no class, or classes that nothing names.
    """
    if not isinstance(losses, Mapping) or not any(isinstance(loss, Annotators) for loss in losses.values()):
        return losses, dict(splits)  # type: ignore[return-value]
    made, rows = dict[str, Any](), dict(splits)
    for name, loss in losses.items():
        if not isinstance(loss, Annotators):
            made[name] = loss
            continue
        if classes is None:
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


def as_model(model: Any, classes: list[str] | None, seed: int) -> tuple[Any, Any]:
    """The student of a name, and its tokenizer; a model as it is, and None.

    Raises:
        ValueError: a name, and no classes for its head.
        FileNotFoundError: no such model.
    """
    if not isinstance(model, str):
        return model, None
    if classes is None:
        raise ValueError(
            "`clean_dataset`: expected rows with a `label`, to know the classes of the model's head; found none. Pass "
            "clean rows, or a model that has its classes."
        )
    set_seed(seed)
    return load_student(model, classes), AutoTokenizer.from_pretrained(model)


def _is_text(split: Dataset) -> bool:
    feature = split.features[str(label_column(split))]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "bool")
