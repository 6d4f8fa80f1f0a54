"""What the model card says about the mixture."""

from __future__ import annotations

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


MORE = re.compile(r"## [^\n]+\n\nMore information needed\n\n")
WHAT = re.compile(r"^This model (?:is a fine-tuned version of|was trained from scratch on) .*?$", re.MULTILINE)


def amend_model_card(path: Path, trainer: Any) -> None:
    """Say in the card at `path` what the model is, by which sources it was taught, and how to cite them."""
    last, sources = trainer.weigher.history.last, trainer.stack.names
    means = ["–"] * len(sources) if last is None else [f"{m:.3f}" for m in last.nanmean(0).tolist()]
    table = "\n".join(f"| {as_code(name)} | {mean} |" for name, mean in zip(sources, means, strict=True))
    losses = "\n".join(f"- {as_code(name)}: {as_code(str(loss))}" for name, loss in trainer.stack.losses.items())
    rows = {"training": trainer.train_dataset, "clean (steering)": trainer.clean_dataset}
    counts = ", ".join(f"{len(d)} {name}" for name, d in rows.items() if d is not None and hasattr(d, "__len__"))
    text = MORE.sub("", path.read_text() if path.is_file() else "")
    text = WHAT.sub(lambda _: _described(trainer.model.config), text, count=1)
    path.write_text(f"""{text}
## Supervision

Trained with `amal_hf` on {counts} rows from several sources, each weighted
per row (method `{trainer.args.method}`).

{losses}

| source | mean weight at the last visit |
|---|---|
{table}

Settings: `{trainer.args.describe()}`

## Citation

```bibtex
{CITATION}
```
""")


def add_scores(path: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Put the scores by split into the card at `path`, before what it was taught by."""
    if not any(metrics.values()):
        return
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    lines = [f"| rows | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for split, scores in metrics.items():
        cells = [f"{scores[name]:.4g}" if name in scores else "–" for name in names]
        lines.append(f"| {split} | {' | '.join(cells)} |")
    text, told = path.read_text(), "\n".join(lines)
    path.write_text(text.replace("\n## Supervision\n", f"\n## Scores\n\n{told}\n\n## Supervision\n", 1))


def as_code(name: str) -> str:
    """A name as inline code in a table, whatever it holds.

    Example:
        >>> as_code("a|b`c")
        '``a\\\\|b`c``'
    """
    text = " ".join(name.split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " * (text[:1] == "`" or text[-1:] == "`")
    return f"{fence}{room}{text}{room}{fence}"


def _described(config: Any) -> str:
    base = str(getattr(config, "_name_or_path", "") or "")
    named = (
        f", fine-tuned from {as_code(base)}"
        if base and not Path(base).exists() and not Path(base).is_absolute()
        else ""
    )
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return f"A classifier of {len(names)} classes ({', '.join(map(as_code, names))}){named}."
