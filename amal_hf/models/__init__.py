"""Before training: teachers become columns, and a teacher's layers a student.

`teach` reads teachers once and keeps their logits in files named by all it depends on; the trainer reads columns
(`Distillation("teacher_logits")`) and never runs a teacher.

========================  ==========================================================
`teach`, `teach_splits`   teachers -> columns of logits, pooled and hidden features
`student_from_teacher`    embeddings, chosen layers and head of a teacher
`add_hint_head`           a student returns features, projected, beside its logits
`class_order`             a teacher's classes in the data's order
`TeacherCache`            what is kept, and under which fingerprint
========================  ==========================================================
"""

from amal_hf.models.class_order import class_order, output_order
from amal_hf.models.copy_layers import choose_layers, find_layers, student_from_teacher
from amal_hf.models.heads import HintHead, add_hint_head, remove_hint_head
from amal_hf.models.pooling import check_layers, mean_pooled, pooled_layers
from amal_hf.models.read_teachers import TeachConfig, name_teachers, teach, teach_splits
from amal_hf.models.student import ModelConfig, default_model, find_models, load_student, make_student
from amal_hf.models.teacher import Teacher, find_teachers
from amal_hf.models.teacher_cache import Reading, TeacherCache

__all__ = [
    "HintHead",
    "ModelConfig",
    "Reading",
    "TeachConfig",
    "Teacher",
    "TeacherCache",
    "add_hint_head",
    "check_layers",
    "choose_layers",
    "class_order",
    "default_model",
    "find_layers",
    "find_models",
    "find_teachers",
    "load_student",
    "make_student",
    "mean_pooled",
    "name_teachers",
    "output_order",
    "pooled_layers",
    "remove_hint_head",
    "student_from_teacher",
    "teach",
    "teach_splits",
]
