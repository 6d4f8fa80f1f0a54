"""A loss of your own: any function (outputs, batch) -> [N] is a source, weighed per row like the others.

    python examples/04_custom_loss.py              # minutes; prints the metrics of the selection rows

Here: a margin loss to the noisy label, beside its cross-entropy. Return the unreduced loss; amal_hf weighs and sums.
"""

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from amal_hf import AMALConfig, AMALTrainer, CrossEntropy, classification_metrics
from amal_hf.commands.train import default_model, load_student
from amal_hf.corpus import CLASSES, load_corpus
from amal_hf.losses import FunctionLoss


def margin(outputs, batch) -> torch.Tensor:
    """Hinge on the margin between the label's logit and the best other one, shape [N]."""
    return F.multi_margin_loss(outputs.logits, batch["labels"], reduction="none")


def main(epochs: float = 1.0) -> AMALTrainer:
    corpus, name = load_corpus(), default_model()
    trainer = AMALTrainer(
        model=load_student(name, CLASSES, num_hidden_layers=2),
        args=AMALConfig("runs/custom", method="amal-step", num_train_epochs=epochs, learning_rate=3e-4,
                        per_device_train_batch_size=32, report_to="none", save_strategy="no"),
        train_dataset=corpus["train"],
        clean_dataset=corpus["clean"],
        eval_dataset=corpus["selection"],
        losses={"label": CrossEntropy(), "margin": FunctionLoss(margin, columns=("labels",))},
        processing_class=AutoTokenizer.from_pretrained(name),
        compute_metrics=classification_metrics,
    )  # fmt: skip
    trainer.train()
    print(trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main()
