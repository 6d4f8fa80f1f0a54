"""The corrected corpus: every training row with its corrected label, after a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from torch.utils.data import DataLoader

from amal_hf._files import check_output, replaced_folder
from amal_hf._types import LABELS, ROW_ID
from amal_hf.data.columns import label_column
from amal_hf.denoising import LOG_POSTERIOR, PROBE, without_clean_rows
from amal_hf.labeling.votes import cast_votes
from amal_hf.losses import ABSTAIN, CrossEntropy, Distillation, LabelingFunctions, Loss
from amal_hf.run_folder.read import read_rows

PARQUET, CSV = "corpus.parquet", "corpus.csv"
TEXT = "text"
"""How columns of a pair of texts begin, beside the one that joins them."""
BEFORE = {"label": "label_before", "teacher": "teacher", "true_label": "true_label"}
"""Columns of rows, and what they are called in the corpus."""
AT_ONCE = 1024  # rows whose assertions [n, K, C] are held at a time


def corrected(claimed: torch.Tensor, student: torch.Tensor, log_posterior: torch.Tensor | None) -> torch.Tensor:
    r"""The corrected label of every row, `[N, C]`: the posterior before training and the student's probabilities.

    $$\pi_i \propto \pi^0_i{}^{1/2}\, p_i{}^{1/2}, \quad\text{without it}\quad
      \pi_i \propto \Big(\sum_k \lambda_{ik} q_{ik}\Big)^{1/2} p_i^{1/2}$$

    Args:
        claimed: Σ_k λ_ik q_ik, `[N, C]`.
        student: its probabilities p, `[N, C]`.
        log_posterior: log π⁰ `[N, C]`, where the run had it.
    """
    total = claimed.sum(1, keepdim=True)
    even = torch.full_like(claimed, 1 / claimed.shape[1])
    known = torch.where(total > 0, claimed / total.clamp_min(1e-9), even).clamp_min(1e-3).log()
    return ((known if log_posterior is None else log_posterior) / 2 + student.clamp_min(1e-6).log() / 2).softmax(1)


def annotate_rows(trainer: Any) -> Dataset:
    """Every training row with what each source asserts, its weight, and the corrected label `[C]`.

    Args:
        trainer: after training.
    """
    rows = tokens = without_clean_rows(trainer.train_dataset)
    probs = _probabilities(trainer, tokens)
    weights = trainer.weigher.history.last_weights()[: len(rows)].float()
    read = _asserted(trainer, tokens, probs.shape[-1], torch.nan_to_num(weights))
    weights = torch.where(read.mask, weights, 0.0)  # NaN: a row that no batch held (max_steps) has none to show
    shown = [
        rows[c] for c in trainer.args.text_columns if c in rows.column_names
    ]  # none beside tokens: no text is kept
    text = [" ".join(map(str, row)) for row in zip(*shown, strict=True)] if shown else [""] * len(rows)
    columns: dict[str, Any] = {
        ROW_ID: trainer.weigher.positions.ids[: len(rows)].tolist(),
        "text": text,
        "label": [-1] * len(rows),
        "majority": _argmax(read.counted),
        "votes": [[] for _ in text],
        "teacher": _argmax(read.teachers.sum(1)),
        "student": probs.argmax(-1).tolist(),
        "student_confidence": probs.amax(-1).tolist(),
        "weights": weights.tolist(),
        "mask": read.mask.tolist(),
    }
    for name, loss in trainer.stack.losses.items():
        named = read.named[:, trainer.stack.slices[name]]
        if isinstance(loss, CrossEntropy) and loss.column == LABELS:
            columns["label"] = named[:, 0].tolist()
        elif loss.columns == (PROBE,):
            columns["probe"] = named[:, 0].tolist()
        elif isinstance(loss, LabelingFunctions):
            columns["votes"] = named.tolist()
    columns |= _named_by_teachers(read.teachers)
    if len(shown) > 1:
        columns |= {f"{TEXT}/{c}": rows[c][:] for c in trainer.args.text_columns if c in rows.column_names}
    there = LOG_POSTERIOR in rows.column_names
    known = torch.as_tensor(np.asarray(rows[LOG_POSTERIOR][:])) if there else None
    columns["corrected"] = corrected(read.claimed, probs, known).tolist()
    if "true_label" in rows.column_names:
        columns["true_label"] = rows["true_label"][:]
    return Dataset.from_dict(columns)


def clean_predictions(trainer: Any, classes: int) -> Dataset | None:
    """The teachers' classes on the clean rows beside their `label`; None without teachers.

    Args:
        trainer: its clean rows have the teachers' columns `[C]` where they were asked.
        classes: C.
    """
    clean = trainer.clean_dataset
    losses = [loss for loss in trainer.stack.losses.values() if isinstance(loss, Distillation)]
    if not losses:
        return None
    nothing = torch.zeros(len(clean), classes)
    of_teachers = []
    for loss in losses:
        there = {*loss.columns} <= {*clean.column_names}
        rows = clean.select_columns([*loss.columns]) if there else None
        batch = trainer.data_collator.sources([*rows]) if rows is not None else {}
        target = loss.target(batch, classes) if batch else None
        of_teachers.append(nothing if target is None else target.float())
    return Dataset.from_dict(
        {"label": clean[label_column(clean)][:], **_named_by_teachers(torch.stack(of_teachers, 1))}
    )


def _named_by_teachers(of_teachers: torch.Tensor) -> dict[str, Any]:
    """The class that each teacher names, -1 none, and how sure it is, from its distribution, `[N, T, C]`."""
    if not of_teachers.shape[1]:
        return {}
    covered = torch.where(of_teachers.sum(-1) > 0, of_teachers.argmax(-1), -1)
    return {"teachers": covered.tolist(), "teachers_confidence": of_teachers.amax(-1).tolist()}


def _probabilities(trainer: Any, rows: Dataset) -> torch.Tensor:
    """The student's, `[N, C]`, of rows in their order."""
    with every_row(trainer.args):
        predicted = trainer.predict(rows).predictions
    return torch.as_tensor(predicted[0] if isinstance(predicted, tuple) else predicted).softmax(-1)


class _Asserted(NamedTuple):
    """What K sources, T of them teachers, assert of N rows.

    Args:
        mask: where each covers a row, `[N, K]`.
        named: the class it names, `[N, K]`; -1 none.
        counted, claimed: Σ_k q_ik and Σ_k λ_ik q_ik, `[N, C]`.
        teachers: their distributions, `[N, T, C]`.
    """

    mask: torch.Tensor
    named: torch.Tensor
    counted: torch.Tensor
    claimed: torch.Tensor
    teachers: torch.Tensor


@contextmanager
def every_row(args: Any) -> Iterator[None]:
    """Predictions of all rows, in their order, as one array, whatever evaluation during training is set to."""
    whole = {"train_sampling_strategy": "random", "prediction_loss_only": False, "eval_do_concat_batches": True,
             "dataloader_drop_last": False}  # fmt: skip
    given = {name: getattr(args, name) for name in whole}
    vars(args).update(whole)
    try:
        yield
    finally:
        vars(args).update(given)


def _asserted(trainer: Any, rows: Dataset, num_classes: int, weights: torch.Tensor) -> _Asserted:
    """What the sources assert, a thousand rows at a time; `weights` λ `[N, K]`."""
    teachers = trainer.stack.positions(lambda loss: isinstance(loss, Distillation))
    keep = [c for c in rows.column_names if c in {*trainer.stack.columns, "label", ROW_ID}]
    loader = DataLoader(rows.select_columns(keep), AT_ONCE, collate_fn=trainer.data_collator.sources)
    parts = []
    for batch, own in zip(loader, weights.split(AT_ONCE), strict=True):
        target = trainer.stack.targets(batch, num_classes)
        named = torch.where(target.sum(-1) > 0, target.argmax(-1), -1)
        claimed = torch.einsum("nk,nkc->nc", own, target)
        parts.append((trainer.stack.mask(batch), named, target.sum(1), claimed, target[:, teachers]))
    return _Asserted(*map(torch.cat, zip(*parts, strict=True)))


def _argmax(mass: torch.Tensor) -> list[int]:
    return torch.where(mass.sum(-1) > 0, mass.argmax(-1), -1).tolist()


def count_clean(clean: Dataset, losses: Mapping[str, Loss], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How often each labeling function votes on the clean rows, and is right: source -> {"votes", "right"}.

    Args:
        clean: rows with `label`, and with votes `[M, K]` where they have them.
        losses: the sources of the run.
        names: loss -> the names of its sources.
    """
    counts = {}
    for name, loss in losses.items():
        if isinstance(loss, LabelingFunctions) and loss.column in clean.column_names:
            rows, votes = cast_votes(clean, loss.column)
            right = votes == np.asarray(clean[label_column(clean)][:])[rows, None]
            for source, entries, hit in zip(names[name], votes.T, right.T, strict=True):
                counts[source] = {"votes": int((entries != ABSTAIN).sum()), "right": int(hit.sum())}
    return counts


def corrected_corpus(trainer: Any) -> Dataset:
    """The corrected corpus of a trainer that has trained: every training row of the user, in their order."""
    return corpus_of(annotate_rows(trainer), trainer.stack.names, class_names(trainer))


def class_names(trainer: Any) -> list[str]:
    """Names of the C classes in the order of their indices: the clean rows', else the model's."""
    config, clean = trainer.model.config, trainer.clean_dataset
    column = label_column(clean) if clean is not None else None
    named = getattr(clean.features[column], "names", None) if column else None
    return named or [config.id2label[i] for i in range(config.num_labels)]


def list_suspects(corpus: Dataset) -> Dataset:
    """Rows of a corrected corpus whose given label is probably wrong, surest first; class names, not indices.

    Columns: `row_id`, `text`, `given`, `suggested`, `confidence`; trust in each source stands in the corpus.
    """
    if "label_before" not in corpus.column_names:
        return corpus.select([]).select_columns(["row_id", "text", "confidence"])
    names = corpus.features["label"].names
    given = np.array([-1 if y is None else y for y in corpus["label_before"][:]])
    label, confidence = np.asarray(corpus["label"][:]), np.asarray(corpus["confidence"][:])
    wrong = np.flatnonzero((given >= 0) & (given != label))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    rows = corpus.select(wrong)
    return Dataset.from_dict(
        {
            ROW_ID: rows[ROW_ID][:],
            "text": rows["text"][:],
            "given": [names[c] for c in given[wrong]],
            "suggested": [names[c] for c in label[wrong]],
            "confidence": confidence[wrong],
        }
    )


def corpus_as_text(corpus: Dataset) -> Dataset:
    """A corrected corpus with names in place of class indices, for a spreadsheet; without `probabilities`."""
    rows = with_class_names(corpus.remove_columns(["probabilities"]).flatten())
    if "votes" not in rows.column_names:
        return rows
    votes = ["; ".join("-" if vote is None else vote for vote in row) for row in rows["votes"][:]]
    return rows.remove_columns(["votes"]).add_column("votes", votes)


def with_class_names(corpus: Dataset) -> Dataset:
    """A corrected corpus with names in place of class indices, in `votes` too, where null abstains."""
    table, classes = corpus.with_format("arrow")[:], corpus.features["label"].names
    for at, (column, feature) in enumerate(corpus.features.items()):
        entries = table[column].combine_chunks()
        if isinstance(feature, ClassLabel):
            table = table.set_column(at, column, _named(entries, feature.names))
        elif column == "votes":
            lists = entries.cast(pa.list_(pa.int64()))
            named = pa.ListArray.from_arrays(lists.offsets, _named(lists.values, classes), mask=lists.is_null())
            table = table.set_column(at, column, named)
    return Dataset(table.replace_schema_metadata(None))


def _named(classes: pa.Array, names: Sequence[str]) -> pa.Array:
    return pa.array(names, pa.string()).take(pc.if_else(pc.less(classes, 0), None, classes))


def denoise(run_dir: str | Path, output_dir: str | Path | None = None) -> Dataset:
    """The corrected corpus of a run, saved as a data set and, with names of classes, as Parquet and CSV.

    Columns: `row_id`, `text`, `label` (the corrected class), `confidence` (its probability), `probabilities` `[C]`,
    `trust` (source -> λ, null where it abstains), and whatever of `votes`, `label_before`, `teacher`, `true_label`
    the run had. Rows are in the order of the training rows.

    Args:
        run_dir: what `amal-hf train` wrote.
        output_dir: a new or empty folder, or a corpus written before, which is replaced; default `RUN_DIR/denoised`.

    Returns:
        the corpus, ready for `push_to_hub`.

    Raises:
        FileNotFoundError: no run in that folder.
        ValueError: a run of another version.
        OSError: a folder that is not there for it alone.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "run.json").is_file() or not (run_dir / "rows").is_dir():
        raise FileNotFoundError(
            f"`RUN_DIR`: expected a folder that `amal-hf train` wrote, found no run.json and rows/ in "
            f"{str(run_dir)!r}. Name the folder of a run that ended."
        )
    target = Path(output_dir) if output_dir else run_dir / "denoised"
    check_output(target, "denoise", {"RUN_DIR": run_dir}, "OUT", within=["RUN_DIR"])
    run, rows, _ = read_rows(run_dir)
    if "corrected" not in rows.column_names:
        raise ValueError(
            f"`RUN_DIR`: expected rows with a corrected label, found {rows.column_names}. Train again "
            "with this version."
        )
    corpus = corpus_of(rows, run["sources"], run["classes"])
    with replaced_folder(target, "denoise", "OUT") as scratch:
        corpus.save_to_disk(scratch / "made")
        with_class_names(corpus).to_parquet(scratch / "made" / PARQUET)
        corpus_as_text(corpus).to_csv(scratch / "made" / CSV)
    return load_from_disk(target)


def corpus_of(rows: Dataset, sources: Sequence[str], classes: Sequence[str]) -> Dataset:
    """The rows of a run as a corpus; every column has a type, also where a source abstains throughout."""
    read = rows.with_format("numpy")
    probabilities = np.asarray(read["corrected"][:], dtype=np.float32)
    weights = np.asarray(read["weights"][:], np.float32)
    mask = np.asarray(read["mask"][:]) & np.isfinite(weights)
    covered = [k for k in range(len(sources)) if mask[:, k].any()]
    trust = [pa.array(weights[:, k], mask=~mask[:, k]) for k in covered]
    texts = {"text": "text"} | {c.removeprefix(f"{TEXT}/"): c for c in rows.column_names if c.startswith(f"{TEXT}/")}
    if {*texts} & {"label", "confidence", "probabilities", "trust", "votes", ROW_ID, *BEFORE.values()}:
        texts = {"text": "text"}
    table = {
        ROW_ID: np.asarray(read[ROW_ID][:]),
        **{name: pa.array(rows[column][:], pa.string()) for name, column in texts.items()},
        "label": probabilities.argmax(1),
        "confidence": probabilities.max(1),
        "probabilities": list(probabilities),
    }
    named = ClassLabel(names=list(classes))
    features: dict[str, Any] = {
        ROW_ID: Value("int64"),
        **dict.fromkeys(texts, Value("string")),
        "label": named,
        "confidence": Value("float32"),
        "probabilities": List(Value("float32")),
    }
    if covered:  # else no weights were kept (log_weights=False)
        table["trust"] = pa.StructArray.from_arrays(trust, [sources[k] for k in covered])
        features["trust"] = {sources[k]: Value("float32") for k in covered}
    if any(len(votes) for votes in rows["votes"][:1]):
        table["votes"], features["votes"] = rows["votes"][:], List(Value("int64"))
    for column, kept in BEFORE.items():
        entries = np.asarray(read[column][:]) if column in rows.column_names else np.array([-1])
        if (entries >= 0).any():
            table[kept], features[kept] = pa.array(entries, pa.int64(), mask=entries < 0), named
    return Dataset(pa.table(table)).cast(Features(features))
