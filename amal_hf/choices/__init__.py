"""What a configuration chooses: the mixing, the lookahead, the meta-gradient and how it is computed (floor 3).

========================  ================================================================
`amal_hf.choices.checks`  whether model, data, sources and settings go together
`amal_hf.choices.task`    what the head does, and the settings and checks that follow
`amal_hf.choices.makers`  the parts that settings describe
========================  ================================================================
"""

from amal_hf.choices.checks import check_arguments, check_columns, check_finite, check_launch, first_row, look_over
from amal_hf.choices.makers import choose_estimator, make_lookahead, make_mixing, make_steering
from amal_hf.choices.task import settle, task_of

__all__ = [
    "check_arguments",
    "check_columns",
    "check_finite",
    "check_launch",
    "choose_estimator",
    "first_row",
    "look_over",
    "make_lookahead",
    "make_mixing",
    "make_steering",
    "settle",
    "task_of",
]
