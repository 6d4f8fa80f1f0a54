"""From clean rows to `[N, K]`: how would V change if source k of row i weighed more? (floor 1)

    >>> from amal_hf.metagrad import MetaProblem, ForwardMode, FiniteDifference, DoubleBackward

`MetaProblem` holds one lookahead; an estimator is a function of it. `Lookahead` says how the
virtual step is taken (`SGD`, `Adam`, or `Still`). `AMALTrainer` builds its problems from the model
and the batch. What V measures depends on the head's task: `amal_hf.metagrad.tasks`.
"""

from amal_hf.metagrad.estimators import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HeadClosedForm,
    MetaGradient,
)
from amal_hf.metagrad.functional import Noise, PureModel, in_float32, in_mode, model_outputs, trainable, whole
from amal_hf.metagrad.head import Head, HeadTap, find_head
from amal_hf.metagrad.lookahead import SGD, Adam, Lookahead, Still
from amal_hf.metagrad.memory import ridge_leave_one_out
from amal_hf.metagrad.problem import HeadProblem, MetaProblem, OutputsProblem

__all__ = [
    "SGD",
    "Adam",
    "DoubleBackward",
    "FiniteDifference",
    "ForwardMode",
    "Head",
    "HeadClosedForm",
    "HeadProblem",
    "HeadTap",
    "Lookahead",
    "MetaGradient",
    "MetaProblem",
    "Noise",
    "OutputsProblem",
    "PureModel",
    "Still",
    "find_head",
    "in_float32",
    "in_mode",
    "model_outputs",
    "ridge_leave_one_out",
    "trainable",
    "whole",
]
