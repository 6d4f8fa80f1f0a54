"""What the model card says about the mixture."""

from __future__ import annotations

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


def amend_model_card(path: Path, trainer: Any) -> None:
    """Append the sources, their mean weight and the citation to the card at `path`."""
    last, sources = trainer.weigher.history.last, trainer.stack.names
    means = ["–"] * len(sources) if last is None else [f"{m:.3f}" for m in last.nanmean(0).tolist()]
    table = "\n".join(f"| `{name}` | {mean} |" for name, mean in zip(sources, means, strict=True))
    losses = "\n".join(f"- `{name}`: `{loss}`" for name, loss in trainer.stack.losses.items())
    rows = {"training": trainer.train_dataset, "clean (steering)": trainer.clean_dataset}
    counts = ", ".join(f"{len(d)} {name}" for name, d in rows.items() if d is not None and hasattr(d, "__len__"))
    text = path.read_text() if path.is_file() else ""
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
