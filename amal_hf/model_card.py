"""The model card of a run: scores, classes, data, sources and their mean weights, licence, citation."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CITATION = """@inproceedings{sivasubramanian2023amal,
  title     = {Adaptive Mixing of Auxiliary Losses in Supervised Learning},
  author    = {Sivasubramanian, Durga and Maheshwari, Ayush and Shenoy, Pradeep and AP, Prathosh
               and Ramakrishnan, Ganesh},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2023},
  note      = {arXiv:2202.03250}
}"""
LICENCE = "More information needed: choose one, and name it as `license` in the first lines of this file."


def amend_model_card(path: Path, trainer: Any) -> None:
    """Rewrite `Trainer`'s card at `path`: its header and hyperparameters, and what is known of rows and sources."""
    text = path.read_text() if path.is_file() else ""
    head = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    titles = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    title = f"# {escaped(titles[0] if titles else Path(trainer.args.output_dir).name)}"
    scores = path.parent / "metrics.json"
    metrics = json.loads(scores.read_text()) if scores.is_file() else {}
    parts = [
        f"{head[0] if head else ''}\n{title}",
        f"A text classifier, trained with `amal_hf` from several sources of supervision, each weighted per row (method "
        f"`{trainer.args.method}`).",
        f"## Classes\n\n{_classes(trainer)}",
        *([f"## Scores\n\n{_scores(metrics)}"] if metrics else []),
        f"## Data\n\n{_data(trainer)}",
        f"## Supervision\n\n{_sources(trainer)}",
        *_sections(text, "### Training hyperparameters", "### Framework versions"),
        f"Settings of the method: `{trainer.args.describe()}`",
        f"## Licence\n\n{LICENCE}",
        f"## Citation\n\n```bibtex\n{CITATION}\n```\n",
    ]
    path.write_text("\n\n".join(parts))


def escaped(name: str) -> str:
    """A name that stands in a table of Markdown as it is: no markup, no cell, no line of its own.

    Example:
        >>> escaped("a|b *c*")
        'a\\\\|b \\\\*c\\\\*'
    """
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(" ".join(name.split()), quote=False))


def _classes(trainer: Any) -> str:
    labels = trainer.model.config.id2label
    return "\n".join(f"- {i}: {escaped(str(labels[i]))}" for i in sorted(labels))


def _scores(metrics: Mapping[str, Any]) -> str:
    lines = ["| rows | number | accuracy | macro-F1 | ECE |", "|---|---|---|---|---|"]
    for name in ("test", "selection"):
        if (found := metrics.get(name)) is not None:
            lines.append(f"| {name} | {found.get('rows', '–')} | {_numbers(found)} |")
    baseline = metrics.get("baseline") or {}
    for name in ("test", "selection"):
        if name in baseline:
            lines.append(f"| {name}, a plain `Trainer` on {baseline['trained_on']} | | {_numbers(baseline[name])} |")
    return "\n".join(lines)


def _numbers(scores: Mapping[str, float]) -> str:
    return " | ".join(f"{scores[key]:.3f}" if key in scores else "–" for key in ("accuracy", "macro_f1", "ece"))


def _data(trainer: Any) -> str:
    rows = {"training rows": trainer.given_rows, "clean rows, which decide how far each source is trusted":
            trainer.clean_dataset}  # fmt: skip
    counts = [f"- {len(d)} {name}" for name, d in rows.items() if d is not None and hasattr(d, "__len__")]
    return "\n".join([*counts, "", "More information needed: where the texts come from, and who may use them."])


def _sources(trainer: Any) -> str:
    last = trainer.weigher.history.last
    names = trainer.stack.names
    means = ["–"] * len(names) if last is None else [f"{m:.3f}" for m in last.nanmean(0).tolist()]
    table = [f"| {escaped(name)} | {mean} |" for name, mean in zip(names, means, strict=True)]
    losses = [f"- {escaped(name)}: {type(loss).__name__} of {escaped(', '.join(loss.columns)) or 'the logits'}"
              for name, loss in trainer.stack.losses.items()]  # fmt: skip
    return "\n".join([*losses, "", "| source | mean weight at the last visit |", "|---|---|", *table])


def _sections(text: str, *titles: str) -> list[str]:
    """Sections of `Trainer`'s card, without those that say nothing."""
    found = [re.search(rf"{re.escape(title)}\n(.*?)(?=\n##|\Z)", text, re.DOTALL) for title in titles]
    return [f"#{title[2:]}\n\n{m[1].strip()}" for title, m in zip(titles, found, strict=True) if m and m[1].strip()]
