"""Labels, a teacher and rules that are all wrong somewhere, 120 clean rows: a classifier, and corrected labels.

    python examples/05_denoise.py       # 2 minutes; labels right 0.600 before and 0.885 after, classifier 0.840

Method "denoise" asks the clean rows once, before training, and then trains on them as well.
"""

import numpy as np
from transformers import AutoTokenizer

from amal_hf import (
    AMALConfig,
    AMALTrainer,
    CrossEntropy,
    Distillation,
    LabelingFunctions,
    classification_metrics,
)
from amal_hf.commands.train import default_model, load_student
from amal_hf.corpus import CLASSES, load_corpus


def main(epochs: float = 3.0) -> dict[str, float]:
    corpus, name = load_corpus(), default_model()
    trainer = AMALTrainer(
        model=load_student(name, CLASSES, num_hidden_layers=2, freeze_embeddings=True),
        args=AMALConfig("runs/denoise", num_train_epochs=epochs, learning_rate=3e-4,
                        per_device_train_batch_size=16, report_to="none", save_strategy="no"),
        train_dataset=corpus["train"],
        clean_dataset=corpus["clean"],
        losses={
            "label": CrossEntropy(),
            "teacher": Distillation("teacher_logits"),
            "rules": LabelingFunctions("weak_labels"),
        },
        processing_class=AutoTokenizer.from_pretrained(name),
        eval_dataset=corpus["selection"],
        compute_metrics=classification_metrics,
    )  # fmt: skip
    trainer.train()
    found = {"classifier, on test rows": trainer.evaluate(corpus["test"])["eval_accuracy"]}
    rows = trainer.corrected_dataset()
    truth, label = np.asarray(rows["true_label"][:]), np.asarray(rows["label"][:])
    unsure = np.asarray(rows["confidence"][:]).argsort()[: len(rows) // 10]
    found["labels, before"] = float((np.asarray(rows["label_before"][:]) == truth).mean())
    found["labels, corrected"] = float((label == truth).mean())
    found["corrected, the least sure tenth"] = float((label[unsure] == truth[unsure]).mean())
    for what, share in found.items():
        print(f"{what:32s} {share:.3f} right")
    return found


if __name__ == "__main__":
    main()
