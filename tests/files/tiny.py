"""A user's folders: data, functions, a teacher, a base model, a run, and things that are nobody's business."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

NAMES = ["air", "sea"]
WORDS = ["wind", "fish", "wet", "blue", "a", "the"]
VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
LFS = """
from snorkel.labeling import labeling_function

@labeling_function()
def wind(x):
    return 0 if "wind" in x.text else -1

@labeling_function()
def fish(x):
    return 1 if "fish" in x.text else -1
"""


def save_model(folder: Path) -> None:
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = dict(enumerate(NAMES))
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, id2label=ids, **sizes)
    config.label2id = {name: i for i, name in ids.items()}
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab=dict(VOCABULARY), model_max_length=32).save_pretrained(folder)


def rows(n: int, start: int) -> str:
    said = ({"text": f"{WORDS[i % 2]} {WORDS[2 + i % 3]} {i + start}", "label": NAMES[i % 2]} for i in range(n))
    return "".join(json.dumps(row) + "\n" for row in said)


def make_world(place: Path) -> None:
    """Everything but the run."""
    for name in ("proj/data", "sibling", "mine/plans", "empty"):
        (place / name).mkdir(parents=True)
    for split, n in (("train", 24), ("validation", 12), ("test", 8)):
        (place / "proj" / "data" / f"{split}.jsonl").write_text(rows(n, 100 * n))
    (place / "proj" / "data" / "notes.md").write_text("mine")
    (place / "proj" / "lfs.py").write_text(LFS)
    (place / "sibling" / "work.py").write_text("mine")
    (place / "mine" / "thesis.docx").write_text("years of work")
    save_model(place / "tea")
    save_model(place / "model")
    settings = {
        "data": "proj/data", "model": "model", "clean_split": "validation", "selection_split": "validation",
        "max_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False, "per_device_train_batch_size": 8,
    }  # fmt: skip
    (place / "proj" / "config.yaml").write_text(yaml.safe_dump(settings))
    for name, target in (("link_mine", "mine"), ("link_data", "proj/data"), ("link_all", "."), ("link_run", "run")):
        (place / name).symlink_to(target)
    (place / "empty" / "link_tea").symlink_to("../tea")
