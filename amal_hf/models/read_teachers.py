"""Teachers' logits as columns of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict, concatenate_datasets

from amal_hf import _checks
from amal_hf._files import check_writable
from amal_hf.data.columns import values_of
from amal_hf.data.split import as_text
from amal_hf.models.class_order import output_order
from amal_hf.models.pooling import check_layers
from amal_hf.models.teacher import Teacher, find_teachers
from amal_hf.models.teacher_cache import HIDDEN, KINDS, LOGITS, POOLED, Reading, TeacherCache


@dataclass
class TeachConfig:
    """How teachers are read.

    Args:
        output_dir: where the data set with its new columns is saved.
        text_columns: one column, or two for pairs; each teacher's own tokenizer reads them.
        label_column: says the task and the classes; a teacher of others is refused ("": do not look).
        classes: class names in the order of their indices, where the label column has none.
        splits: which splits are read (empty: train); others are saved as they are.
        names: name of each teacher; its columns are NAME_logits and so on (default: "teacher", or folders' names).
        features: beside the logits, "pooled" (last layer, mean over tokens, `[H]`) or "hidden" (`[L, H]`) states.
        layers: for "hidden": 0 the embeddings, i what layer i puts out (empty: all).
        where: column of booleans; where it is not true the teachers are not asked: they abstain (null).
        max_length: tokens read of a text.
        batch_size: texts a forward reads.
        bf16: half precision for weights and arithmetic (default: on a GPU that knows it).
        use_cpu: leave a GPU alone.
        cache_dir: what has been read (default: beside the cache of `datasets`).
        trust_remote_code: whether code that comes with a teacher may run.
    """

    output_dir: str = field(default="", metadata={"help": "Where the data set with its new columns is saved"})
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One column, or two for pairs"})
    label_column: str = field(default="label", metadata={"help": "Column that says the task and its classes"})
    classes: list[str] = field(default_factory=list, metadata={"help": "Class names in order of index"})
    splits: list[str] = field(default_factory=list, metadata={"help": "Splits to read (default: train)"})
    names: list[str] = field(default_factory=list, metadata={"help": "A name for each teacher's columns"})
    features: list[str] = field(default_factory=list, metadata={"help": "pooled, hidden: features beside the logits"})
    layers: list[int] = field(default_factory=list, metadata={"help": "Layers of `hidden` (default: all)"})
    where: str = field(default="", metadata={"help": "Column of booleans: elsewhere the teachers abstain"})
    max_length: int = field(default=128, metadata={"help": "Tokens read of a text"})
    batch_size: int = field(default=64, metadata={"help": "Texts a forward reads"})
    bf16: bool | None = field(default=None, metadata={"help": "Half precision (default: on a GPU that knows it)"})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone"})
    cache_dir: str = field(default="", metadata={"help": "What has been read (default: in the cache of datasets)"})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a teacher"})

    def __post_init__(self) -> None:
        for each in self.features:
            _checks.one_of("features", each, (POOLED, HIDDEN))
        _checks.positive("max_length", self.max_length)
        _checks.positive("batch_size", self.batch_size)

    @property
    def root(self) -> Path:
        """Folder of the caches."""
        return Path(self.cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "amal_teachers")


def teach(dataset: Dataset, teachers: Sequence[str], config: TeachConfig | None = None) -> Dataset:
    """`teach_splits` for one data set.

    Args:
        dataset: rows with text.
        teachers: folders or Hub names of fine-tuned classifiers; `*` stands for several folders.

    Returns:
        the same rows with, for each teacher, `NAME_logits` `[C]` in the data's order of classes, on request
        `NAME_pooled` `[H]` and `NAME_hidden` `[L, H]`; null where it abstains. One teacher is called "teacher".
    """
    return teach_splits({"train": dataset}, teachers, config)["train"]


def teach_splits(
    splits: Mapping[str, Dataset], teachers: Sequence[str], config: TeachConfig | None = None
) -> DatasetDict:
    """Every split with its teachers' logits `[N, C]`, a column each. Read once: a second call takes it from files.

    Raises:
        ValueError: before any text is read, what is wrong with a teacher (other classes, another task, no head, no
            tokenizer, larger than memory) or with the data (no text column, rows without text); while reading, a
            row whose logits are no finite numbers.
        FileNotFoundError: no such teacher.
    """
    config = config or TeachConfig()
    state = PartialState(cpu=config.use_cpu)  # of the process: as whoever came first has made it
    device = torch.device("cpu") if config.use_cpu else state.device
    chosen = config.splits or ["train"]
    for name in chosen:
        _checks.one_of("splits", name, splits)
    opened = [Teacher.open(name, config.trust_remote_code) for name in find_teachers(teachers)]
    named = name_teachers([teacher.name for teacher in opened], config.names)
    texts = {split: _texts(splits[split], split, config) for split in chosen}
    check_writable("cache_dir" if config.cache_dir else "HF_HOME", config.root)
    orders = _orders(opened, splits[chosen[0]], config)
    caches: dict[str, dict[str, TeacherCache]] = {}
    for name, teacher, order in zip(named, opened, orders, strict=True):
        for split in chosen:
            _free_columns(splits[split], split, name, config)
        reading = _reading(teacher, order, config, device)
        caches[name] = {split: TeacherCache(config.root, texts[split], reading) for split in chosen}
        if not all(cache.complete for cache in caches[name].values()):
            teacher.check_memory(device, reading.dtype)
    for name, of_splits in caches.items():
        _fill(of_splits, state, device, config, name)
    taught = dict(splits)
    for name, of_splits in caches.items():
        for split, cache in of_splits.items():
            columns = cache.columns()
            columns = columns.rename_columns({kind: f"{name}_{kind}" for kind in columns.column_names})
            taught[split] = concatenate_datasets([taught[split], columns], axis=1)
    return DatasetDict(taught)


def _fill(
    of_splits: Mapping[str, TeacherCache], state: PartialState, device: torch.device, config: TeachConfig, name: str
) -> None:
    missing = {split: cache for split, cache in of_splits.items() if not cache.complete}
    state.wait_for_everyone()  # before one process completes what another has not yet looked at
    if not missing:
        return
    reading = next(iter(missing.values())).reading
    tokenizer = reading.teacher.tokenizer()
    model = reading.teacher.model(device, reading.dtype)
    for split, cache in missing.items():
        cache.fill(model, tokenizer, config.batch_size, state, f"{name} on {split}")


def name_teachers(teachers: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """What each teacher's columns are called; folders' names where they differ, with their parents' where not.

    Args:
        teachers: folders or names on the Hub.
        given: the names, where they are chosen.

    Raises:
        ValueError: not one name for each, or paths that do not differ.

    Example:
        >>> name_teachers(["runs/a/checkpoint-9", "runs/b/checkpoint-9"])
        ['a_checkpoint-9', 'b_checkpoint-9']
    """
    if given:
        if len(given) != len(teachers) or len(set(given)) != len(given):
            raise ValueError(
                f"`names`: expected {len(teachers)} different names, for {teachers}, found {list(given)}. Name each."
            )
        return list(given)
    if len(teachers) == 1:
        return ["teacher"]
    for depth in range(1, 9):
        names = ["_".join(Path(teacher).parts[-depth:]) for teacher in teachers]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"`names`: expected teachers whose paths differ, found {teachers}. Name them.")


def _orders(teachers: Sequence[Teacher], rows: Dataset, config: TeachConfig) -> list[list[int]]:
    """Each teacher's outputs in the data's order of classes; where it names none, in the first teacher's."""
    label = rows.features.get(config.label_column)
    first = teachers[0].config
    theirs = [str(first.id2label[i]) for i in range(first.num_labels)]
    if config.label_column and label is None and not config.classes:
        warnings.warn(
            f"`label_column`: expected {config.label_column!r} among {_checks.few(rows.column_names)}, found "
            f"that it is not there. Classes stand in the order of {teachers[0].name!r}: {theirs}; name it, or set it "
            "to '' if there is none.",
            UserWarning,
            stacklevel=3,
        )
    return [output_order(each.name, each.config, label, config.classes or theirs) for each in teachers]


def _reading(teacher: Teacher, order: Sequence[int], config: TeachConfig, device: torch.device) -> Reading:
    if HIDDEN in config.features:
        check_layers(config.layers, teacher.config.num_hidden_layers)
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Reading(
        teacher,
        tuple(order),
        (LOGITS, *(kind for kind in KINDS if kind in config.features)),
        tuple(config.layers),
        config.max_length,
        torch.bfloat16 if (on_gpu if config.bf16 is None else config.bf16) else torch.float32,
    )


def _texts(rows: Dataset, split: str, config: TeachConfig) -> Dataset:
    """The text columns alone; None where no teacher is asked.

    Raises:
        ValueError: a column is missing, or text on some rows.
    """
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"`{split}`: expected a data set that can be indexed, found a stream ({type(rows).__name__}). Rows are "
            "read longest first: load it without streaming."
        )
    named = {"text_columns": config.text_columns, "where": [config.where] if config.where else []}
    for setting, columns in named.items():
        if missing := [column for column in columns if column not in rows.column_names]:
            raise ValueError(
                f"`{setting}`: expected column(s) {missing} in {split!r}, found only {_checks.few(rows.column_names)}. "
                "Name another column."
            )
    if config.where:
        _checks.booleans(f"`where`: column {config.where!r} of {split!r}", values_of(rows, config.where))
    if not len(rows):
        raise ValueError(f"`{split}`: expected at least one row for the teacher to read, found none. Fill it.")
    texts = rows.select_columns(list(config.text_columns)).with_format(None)
    for column in config.text_columns:
        texts = as_text(texts, column, split)
    asked = [value == 1 for value in rows[config.where]] if config.where else [True] * len(rows)
    for column in config.text_columns:
        empty = [i for i, (text, ask) in enumerate(zip(texts[column], asked, strict=True)) if ask and text is None]
        if empty:
            raise ValueError(
                f"`{split}`: expected text on every row, found none in column {column!r} on {len(empty)} row(s), the "
                f"first {empty[:5]}. Drop them, or name a column of booleans in `where` that is false there: the "
                "teacher then abstains."
            )
    if all(asked):
        return texts
    blanked = {c: [t if ask else None for t, ask in zip(texts[c], asked, strict=True)] for c in config.text_columns}
    return Dataset.from_dict(blanked, features=texts.features)


def _free_columns(rows: Dataset, split: str, name: str, config: TeachConfig) -> None:
    taken = [c for kind in (LOGITS, *config.features) if (c := f"{name}_{kind}") in rows.column_names]
    if taken:
        raise ValueError(
            f"`{split}`: expected no columns {taken} yet, found them. Remove them, or give the teacher another name in "
            "`names` (`teacher_names` in `amal-hf train`)."
        )
