"""Two teachers, one of them bad: each has a column, each gets its own trust on every row.

    python examples/02_distillation.py             # minutes; prints the mean weight of both teachers

The good teacher is the corpus' own; the bad one is the same teacher with its rows shuffled. Nobody tells the trainer.
"""

import numpy as np
import torch
from transformers import AutoTokenizer

from amal_hf import AMALConfig, AMALTrainer, Distillation, classification_metrics
from amal_hf.commands.train import default_model, load_student
from amal_hf.corpus import CLASSES, load_corpus


def main(epochs: float = 2.0) -> dict[str, float]:
    corpus, name = load_corpus(), default_model()
    shuffled = np.random.default_rng(0).permutation(corpus["train"]["teacher_logits"][:])
    train = corpus["train"].add_column("bad_logits", shuffled.tolist())
    trainer = AMALTrainer(
        model=load_student(name, CLASSES, num_hidden_layers=2),
        args=AMALConfig("runs/distillation", num_train_epochs=epochs, learning_rate=3e-4,
                        per_device_train_batch_size=32, report_to="none", save_strategy="no"),
        train_dataset=train,
        clean_dataset=corpus["clean"],
        eval_dataset=corpus["selection"],
        losses={
            "good": Distillation("teacher_logits", temperature=2.0),
            "bad": Distillation("bad_logits", temperature=2.0),
        },
        processing_class=AutoTokenizer.from_pretrained(name),
        compute_metrics=classification_metrics,
    )  # fmt: skip
    trainer.train()
    print(trainer.evaluate())
    weights = trainer.weights.with_format("torch")
    means = {name: float(torch.as_tensor(weights[name][:]).nanmean()) for name in ("good", "bad")}
    print("mean weight:", {k: round(v, 3) for k, v in means.items()})
    return means


if __name__ == "__main__":
    main()
