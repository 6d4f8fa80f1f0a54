"""Meta-gradients `[N, K]`: by how much V, the clean rows' loss, changes if source k of row i weighs more.

    >>> from amal_hf.metagrad import MetaProblem, ForwardMode, FiniteDifference, DoubleBackward

`MetaProblem` holds one lookahead; an estimator is a function of it. `VirtualStep` says how the
virtual step is taken (`SGDStep`, `AdamStep`, or `NoStep`). `AMALTrainer` builds its problems from the model
and the batch. What V measures depends on the head's task: `amal_hf.metagrad.tasks`.
"""

from amal_hf.metagrad.adam_step import AdamStep
from amal_hf.metagrad.clean_features import ridge_leave_one_out
from amal_hf.metagrad.estimators import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HeadClosedForm,
    MetaGradient,
)
from amal_hf.metagrad.functional import (
    PureModel,
    RNGState,
    float32_copies,
    in_float32,
    in_mode,
    model_outputs,
    trainable,
    whole,
)
from amal_hf.metagrad.head import Head, HeadTap, find_head, head_or_reason
from amal_hf.metagrad.problem import HeadProblem, MetaProblem, OutputsProblem
from amal_hf.metagrad.virtual_step import LazyStep, NoStep, SGDStep, VirtualStep

__all__ = [
    "AdamStep",
    "DoubleBackward",
    "FiniteDifference",
    "ForwardMode",
    "Head",
    "HeadClosedForm",
    "HeadProblem",
    "HeadTap",
    "LazyStep",
    "MetaGradient",
    "MetaProblem",
    "NoStep",
    "OutputsProblem",
    "PureModel",
    "RNGState",
    "SGDStep",
    "VirtualStep",
    "find_head",
    "float32_copies",
    "head_or_reason",
    "in_float32",
    "in_mode",
    "model_outputs",
    "ridge_leave_one_out",
    "trainable",
    "whole",
]
