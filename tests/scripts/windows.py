"""Plain runs whose loss is a mean over the rows of the optimizer step: `accelerate launch windows.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from amal_hf._window import PADDING, Window

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "num_labels": 3, "initializer_range": 0.2, "pad_token_id": 0}
KINDS = {
    "bert": BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
}
SPLIT, UNEVEN = {"accelerator_config": {"split_batches": True}}, {"accelerator_config": {"even_batches": False}}
CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {  # rows, batch, accumulated
    "short last batch": (26, 8, 1, {}),
    "short window": (26, 2, 4, {}),
    "one row each": (25, 1, 8, {}),
    "fewer rows than a batch": (3, 8, 1, {}),
    "fewer rows than processes": (1, 2, 4, {}),
    "split batches": (26, 16, 1, SPLIT),
    "uneven batches": (26, 8, 1, UNEVEN),
    "stream": (25, 4, 2, {"max_steps": 8}),
}


class Windowed(Trainer):
    """How a trainer draws a window and uses it."""

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, Window.of(self.accelerator, batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        padding, labels = inputs.pop(PADDING, None), inputs.pop("labels")
        losses = F.cross_entropy(model(**inputs).logits, labels, reduction="none")
        return num_items_in_batch.mean(losses if padding is None else losses * ~padding)


def ended(
    folder: Path, rows: int, batch: int, accumulated: int, name: str = "bert", **settings: Any
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The parameters and the logged losses of three epochs in float64."""
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(KINDS[name]).double()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (rows, 6), generator=draw)
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 3}
    args = TrainingArguments(
        str(folder / "run"), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
        num_train_epochs=3, learning_rate=0.1, optim="sgd", report_to=[], use_cpu=True, save_strategy="no",
        logging_steps=1, disable_tqdm=True, **settings,
    )  # fmt: skip
    data: Any = Dataset.from_dict({k: v.tolist() for k, v in columns.items()}).with_format("torch")
    if "max_steps" in settings:
        data = data.to_iterable_dataset()
    trainer = Windowed(model=model, args=args, train_dataset=data)
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {name: p.detach() for name, p in trained.named_parameters()}, [float(loss) for loss in logs]


def main(folder: Path) -> None:
    here = PartialState(cpu=True)
    for name, (rows, batch, accumulated, settings) in CASES.items():
        end = ended(folder, rows, batch, accumulated, train_sampling_strategy="sequential", **settings)
        if here.is_main_process:
            torch.save(end, folder / f"{name}.pt")
    here.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
