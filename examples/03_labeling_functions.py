"""No training labels at all: 13 labeling functions and 120 clean rows.

    python examples/03_labeling_functions.py       # minutes; prints accuracy and trust per function

Each function is a source of its own, trusted per row. The table sets its learned weight beside its true accuracy.
"""

import numpy as np
from transformers import AutoTokenizer

from amal_hf import AMALConfig, AMALTrainer, LabelingFunctions, classification_metrics
from amal_hf.commands.train import default_model, load_student
from amal_hf.corpus import CLASSES, LABELING_FUNCTIONS, load_corpus


def main(epochs: float = 3.0) -> list[tuple[str, float, float]]:
    corpus, name = load_corpus(), default_model()
    names = tuple(lf.name for lf in LABELING_FUNCTIONS)
    trainer = AMALTrainer(
        model=load_student(name, CLASSES, num_hidden_layers=2),
        args=AMALConfig("runs/rules", num_train_epochs=epochs, learning_rate=3e-4,
                        per_device_train_batch_size=32, report_to="none", save_strategy="no"),
        train_dataset=corpus["train"],
        clean_dataset=corpus["clean"],
        eval_dataset=corpus["selection"],
        losses={"rules": LabelingFunctions("weak_labels", names=names)},
        processing_class=AutoTokenizer.from_pretrained(name),
        compute_metrics=classification_metrics,
    )  # fmt: skip
    trainer.train()
    print(trainer.evaluate())
    votes, truth = np.asarray(corpus["train"]["weak_labels"][:]), np.asarray(corpus["train"]["true_label"][:])
    weights = trainer.weights.to_pandas()
    table = []
    for j, lf in enumerate(names):
        fires = votes[:, j] >= 0
        table.append((lf, float((votes[fires, j] == truth[fires]).mean()), float(weights[f"rules/{lf}"].mean())))
    for lf, accuracy, trust in sorted(table, key=lambda row: -row[2]):
        print(f"{lf:16s} accuracy {accuracy:.2f}   mean weight {trust:.2f}")
    return table


if __name__ == "__main__":
    main()
