"""`amal-hf label`: splits and labeling functions to a folder of votes, posteriors and statistics."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from snorkel.labeling import LabelingFunction

from amal_hf import _checks
from amal_hf._files import check_output, replaced_folder, write_json
from amal_hf.labeling.analysis import CHUNK_ROWS, JUDGED, analyze_chunks
from amal_hf.labeling.apply import ENGINES, ON_ERROR, apply_functions, with_columns, write_columns
from amal_hf.labeling.checks import VOTES, VoteWarning, vote_matrix, warn_abstaining, warn_order
from amal_hf.labeling.engines import cluster, spans
from amal_hf.labeling.functions import check_names
from amal_hf.labeling.label_models import COLUMNS, Posterior, accuracy, check_models, fit
from amal_hf.losses import ABSTAIN

FIT_ROWS = 100_000  # a label model's statistics are known to three digits then, and memory stays bounded
NAMES, SUMMARY = "lfs.json", "summary.json"


@dataclass
class LabelConfig:
    """How `amal-hf label` votes, and what it makes of the votes.

    Args:
        output_dir: new or empty folder, or one that `amal-hf label` wrote before, which is replaced.
        label_models: of majority, snorkel, cage, with commas.
        label_column: class of a row, where there is one: to judge by, never to learn from.
        classes: class names in the order of their indices (default: found in the label column).
        num_proc: processes that apply the functions (0: one a core).
        engine: "processes", or "dask" or "spark" where the corpus outgrows the machine.
        num_workers: local workers of Dask or Spark.
        scheduler: address of a running Dask scheduler or Spark master instead.
        on_error: "raise" where a function raises, or "abstain" there and warn.
        seed: of the label models.
    """

    output_dir: str = field(default="", metadata={"help": "Folder to write"})
    label_models: str = field(default="majority,snorkel,cage", metadata={"help": "Which to fit, with commas"})
    label_column: str = field(default="label", metadata={"help": "Column of the class, to judge by"})
    classes: list[str] = field(default_factory=list, metadata={"help": "Class names in order of index"})
    num_proc: int = field(default=0, metadata={"help": "Processes that apply the functions (0: one a core)"})
    engine: str = field(default="processes", metadata={"help": "processes, dask or spark"})
    num_workers: int = field(default=2, metadata={"help": "Local workers of Dask or Spark"})
    scheduler: str = field(default="", metadata={"help": "Running Dask scheduler or Spark master"})
    on_error: str = field(default="raise", metadata={"help": "raise, or abstain where a function raises"})
    seed: int = field(default=42, metadata={"help": "Seed of the label models"})

    @property
    def models(self) -> list[str]:
        """Names of the label models."""
        return [name.strip() for name in self.label_models.split(",") if name.strip()]


def label_splits(
    functions: Sequence[LabelingFunction], splits: DatasetDict, config: LabelConfig
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Vote on every split, fit the label models to train (or the first), and write `config.output_dir`.

    Written are the splits as `save_to_disk` does, with columns `weak_labels` `[N, M]` and one posterior `[N, C]` per
    label model; `lfs.json`, the functions' names in order; `lf_analysis_<split>.csv`; and `summary.json`.

    Args:
        functions: M labeling functions.
        splits: rows; the label column, where there is one, a `ClassLabel` (see `data.classes.name_classes`).

    Returns:
        by split, `analyze` of the functions; and per split the rows, the share covered, and how often each
        label model is right on covered rows (NaN without labels).

    Raises:
        ValueError: settings that do not fit, or a function that raises or votes for no class. Nothing is written then.
    """
    names = check_names(functions)
    check_config(config, splits, len(names))
    with replaced_folder(config.output_dir, "label") as work:
        with cluster(config.engine, config.num_workers, config.scheduler):
            voted, tables, seconds = _vote(functions, splits, config, work)
        first = "train" if "train" in splits else next(iter(splits))
        classes = class_names(splits, config) or _counted(tables)
        warn_abstaining(tables[first]["Polarity"].tolist(), names, classes, first)
        judged_by = [table[JUDGED].sum() for table in tables.values() if "Correct" in table]
        right, wrong = (int(sum(each[name] for each in judged_by)) for name in JUDGED)
        warn_order(right, right + wrong, len(classes), where="classes")
        models = fit_models(config.models, voted[first], len(classes), config.seed)
        summaries = {}
        for name, split in voted.items():
            voted[name], summaries[name] = _aggregate(split, models, len(classes), config, work)
        judged = pd.DataFrame.from_dict(summaries, orient="index")
        made = work / "made"
        voted.save_to_disk(str(made))
        write_json(made / NAMES, list(names))
        for name, table in tables.items():
            table.to_csv(made / f"lf_analysis_{name}.csv", index_label="function")
        write_json(made / SUMMARY, _summary(config, classes, judged, seconds))
    return tables, judged


def check_config(config: LabelConfig, splits: DatasetDict, functions: int) -> None:
    """Everything that can be known before the first vote.

    Raises:
        ValueError: naming the setting.
    """
    if not config.output_dir:
        raise ValueError("`output_dir`: expected a folder to write, found none. Name one: --output_dir DIR.")
    check_output(config.output_dir, "label", {})
    check_models(config.models, functions, len(class_names(splits, config)))
    _checks.one_of("engine", config.engine, ENGINES)
    _checks.one_of("on_error", config.on_error, ON_ERROR)
    _checks.positive("num_proc", config.num_proc, zero=True)
    _checks.positive("num_workers", config.num_workers)
    if not any(len(split) for split in splits.values()):
        raise ValueError("`data`: expected at least one row, found none. Fill the file.")
    for name, split in splits.items():
        feature = split.features.get(config.label_column)
        if feature is not None and not isinstance(feature, ClassLabel):
            raise ValueError(
                f"`label_column`: expected classes in {config.label_column!r} of {name}, found {feature}. Name the "
                "column of the class."
            )
    replaced = sorted({VOTES, *COLUMNS.values()} & {c for split in splits.values() for c in split.column_names})
    if replaced:
        warnings.warn(
            f"`data`: column(s) {replaced} are there: they are replaced, or left out where nothing new is asked for.",
            VoteWarning,
            stacklevel=3,
        )


def class_names(splits: DatasetDict, config: LabelConfig) -> list[str]:
    """Names of the classes: those of the label column, or those configured; [] where neither names any."""
    features = (split.features.get(config.label_column) for split in splits.values())
    return next((list(feature.names) for feature in features if feature is not None), list(config.classes))


def fit_models(names: Sequence[str], dataset: Dataset, num_classes: int, seed: int) -> dict[str, Posterior]:
    """Label models fitted to column `weak_labels` `[N, M]`, on at most `FIT_ROWS` rows drawn by `seed`."""
    rows = len(dataset)
    if rows <= FIT_ROWS:
        votes = vote_matrix(dataset)
    else:
        drawn = np.zeros(rows, bool)
        drawn[np.random.default_rng(seed).choice(rows, FIT_ROWS, replace=False, shuffle=False)] = True
        chunks = spans(rows, CHUNK_ROWS)
        votes = np.concatenate([vote_matrix(dataset.select(s))[drawn[s.start : s.stop]] for s in chunks])
    return {name: fit(name, votes, num_classes, seed) for name in names}


def _vote(
    functions: Sequence[LabelingFunction], splits: DatasetDict, config: LabelConfig, folder: Path
) -> tuple[DatasetDict, dict[str, pd.DataFrame], dict[str, float]]:
    """The splits with votes, the functions' summary, and the seconds it took, by split."""
    processes = config.num_proc or os.cpu_count() or 1
    voted, tables, seconds = DatasetDict(), {}, {}
    for name, split in splits.items():
        started = time.perf_counter()
        voted[name] = apply_functions(
            functions,
            split,
            processes if config.engine == "processes" else config.num_workers,
            num_classes=len(class_names(splits, config)) or None,
            on_error=config.on_error,
            engine=config.engine,
            name=name,
            folder=folder,
        )
        seconds[name] = time.perf_counter() - started
        named = [function.name for function in functions]
        tables[name] = analyze_chunks(_chunks(voted[name], config.label_column), named)
    return voted, tables, seconds


def _aggregate(
    split: Dataset, models: Mapping[str, Posterior], num_classes: int, config: LabelConfig, folder: Path
) -> tuple[Dataset, dict[str, float]]:
    """The split with a column per label model; its rows, share covered, and how often each model is right."""
    covered, judged, right = 0, 0, dict.fromkeys(models, 0.0)

    def columns() -> Iterator[dict[str, np.ndarray]]:
        nonlocal covered, judged
        for votes, gold in _chunks(split, config.label_column):
            covered += int((votes != ABSTAIN).any(1).sum())
            posteriors = {name: model(votes) for name, model in models.items()}
            if gold is not None:
                for name, posterior in posteriors.items():
                    hits, rows = accuracy(posterior, gold)
                    right[name] += hits
                judged += rows if posteriors else 0
            yield {COLUMNS[name]: posterior for name, posterior in posteriors.items()}

    features = Features({COLUMNS[name]: List(Value("float32"), length=num_classes) for name in models})
    kept = split.remove_columns([c for c in COLUMNS.values() if c in split.column_names])  # of other votes
    made = with_columns(kept, write_columns(columns(), features, folder))
    summaries = {"rows": len(split), "covered": covered / max(1, len(split))}
    return made, summaries | {name: hits / judged if judged else float("nan") for name, hits in right.items()}


def _chunks(split: Dataset, label_column: str) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Votes `[rows, M]` and gold `[rows]`, -1 where unknown (None without a label column)."""
    there = label_column in split.column_names
    read = split.select_columns([VOTES, *([label_column] if there else [])])
    for span in spans(len(split), CHUNK_ROWS):
        part, gold = read.select(span), None
        if there:
            gold = np.array([-1 if label is None else max(label, -1) for label in part[label_column]])
        yield vote_matrix(part), gold


def _counted(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Classes by number, as many as votes tell of; at least two."""
    highest = max((c for table in tables.values() for posteriors in table["Polarity"] for c in posteriors), default=0)
    return [str(c) for c in range(max(2, highest + 1))]


def _summary(
    config: LabelConfig, classes: Sequence[str], judged: pd.DataFrame, seconds: Mapping[str, float]
) -> dict[str, Any]:
    def plain(name: str, row: pd.Series) -> dict[str, Any]:
        summaries = {key: None if np.isnan(value) else float(value) for key, value in row.items()}
        return summaries | {"rows": int(row["rows"]), "seconds": round(seconds[name], 3)}

    return {
        "classes": list(classes),
        "label_models": config.models,
        "seed": config.seed,
        "fit_rows": FIT_ROWS,
        "engine": config.engine,
        "splits": {str(name): plain(str(name), row) for name, row in judged.iterrows()},
    }
