r"""The label model of method `denoise`: class probabilities of every row from a few clean rows, before training.

Experts are asked about the class of a row, and the clean rows decide how far each is believed:

- a **probe**: ridge regression from the student's own encoder (pretrained, not yet trained; mean over tokens) to the
  clean rows' classes: the lookahead of a head taken to its end, the head retrained from zero on all clean rows;
- the **votes**: naive Bayes, each function's precision counted on the clean rows and shrunk towards its overall rate;
- **teachers**: the logits as they are, and the class each names, counted like a vote;
- the **pool** of all rows, ridge regression from the same features to what sources assert of the training rows,
  cross-fitted over rows and over clean rows, asked three times: what these experts and the labels believe of rows
  alike; what the labels alone assert; and, of each teacher, whether labels and votes believe it there: a teacher that
  is wrong on a region weighs little in that region;

and, of a **label** that may be wrong, how often it is, by EM over all rows. With $E_e$ `[N, C]` the log-odds of
expert e, the corrected label is

$$\log \pi_{ic} = \log b_c + \sum_e w_e E_{e,ic} + \text{const}, \qquad w_e \in [0, 6]$$

w is fitted to the clean rows, each judged by the *others* (leave-one-out), so nothing is believed because it was
memorised; b are the classes' shares among the rows to be judged, half-way from equal ones.

==============================  ==========================================================
`add_posterior`                 adds the columns `log_posterior` (log π) and `probe`
`clean_share`                   how large that share should be
`with_clean_rows`               adds the clean rows themselves, as a share of every batch
`without_clean_rows`            the rows without them
`Probe`                         the first expert
`NaiveBayesVotes`               the second
`LabelNoise`                    the last
`adjusted_balanced_accuracy`    how much better than chance a teacher is
==============================  ==========================================================

`AMALTrainer.train` does all of it for its own data sets (`amal_hf.denoising.inputs`).
"""

from amal_hf.denoising.experts import NaiveBayesVotes, Probe
from amal_hf.denoising.label_noise import LabelNoise
from amal_hf.denoising.prepare import (
    CLEAN_LABEL,
    LOG_POSTERIOR,
    PROBE,
    add_posterior,
    clean_share,
    with_clean_rows,
    without_clean_rows,
)
from amal_hf.denoising.teacher_experts import adjusted_balanced_accuracy

__all__ = [
    "CLEAN_LABEL",
    "LOG_POSTERIOR",
    "PROBE",
    "LabelNoise",
    "NaiveBayesVotes",
    "Probe",
    "add_posterior",
    "adjusted_balanced_accuracy",
    "clean_share",
    "with_clean_rows",
    "without_clean_rows",
]
