"""Weak supervision as columns: labeling functions to votes, votes to one distribution.

What `amal-hf label LFS.py DATA` does, step by step: the trainer reads the columns and runs no function. Votes `[N, M]`
are Snorkel's: -1 abstains, 0..C-1 names a class. Votes that come from files execute nothing.

=====================  ==========================================================
`load_functions`       the labeling functions of a Python file that the user names
`apply_functions`      a data set with their votes, in processes, Dask or Spark
`check_votes`          votes from elsewhere: -1..C-1, one column a function
`vote_matrix`          a column of votes as `[N, M]`
`analyze`              Snorkel's table of the functions, with or without gold
`majority_vote`        `[N, C]`, ties share
`label_model`          `[N, C]`, Snorkel's `LabelModel`
`CAGE`                 `[N, C]`, a graphical model of votes
`JointCAGE`            the same, trained with the student
`votes_from_columns`   answers of annotators (people, LLMs) as votes
`labelled_subset`      the few labelled rows, and the others
`join_columns`         a table of votes beside a table of texts, by row
`label_splits`         all of it, into a folder
=====================  ==========================================================
"""

from amal_hf.labeling.analysis import analyze
from amal_hf.labeling.apply import apply_functions
from amal_hf.labeling.cage import CAGE
from amal_hf.labeling.checks import VoteWarning, check_votes, vote_matrix
from amal_hf.labeling.formats import join_columns, labelled_subset, votes_from_columns
from amal_hf.labeling.functions import load_functions
from amal_hf.labeling.joint import JointCAGE
from amal_hf.labeling.label_models import label_model, majority_vote
from amal_hf.labeling.label_splits import LabelConfig, label_splits

__all__ = [
    "CAGE",
    "JointCAGE",
    "LabelConfig",
    "VoteWarning",
    "analyze",
    "apply_functions",
    "check_votes",
    "join_columns",
    "label_model",
    "label_splits",
    "labelled_subset",
    "load_functions",
    "majority_vote",
    "vote_matrix",
    "votes_from_columns",
]
