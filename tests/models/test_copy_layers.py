"""Students made of teachers' layers: exactly the teacher's numbers, wherever the teacher's layers are kept."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers import CLASSES, VOCAB, build, config
from transformers import AutoModelForSequenceClassification

from amal_hf.commands.train import default_model
from amal_hf.models import find_layers, student_from_teacher

LAYERS, NAMES = 4, ["a", "b", "c", "d"]
# where each architecture keeps its layers
PATHS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "deberta-v2": "deberta.encoder.layer",
    "modernbert": "model.layers",
}


def teacher_of(kind: str) -> Any:
    """Four layers, trained classes' names."""
    made = config(kind)
    made.num_hidden_layers = LAYERS
    if kind == "modernbert":
        made.layer_types = ["full_attention", "sliding_attention"] * (LAYERS // 2)
    made.id2label, made.label2id = dict(enumerate(NAMES)), {n: i for i, n in enumerate(NAMES)}
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(made).eval()


@pytest.fixture(scope="module", params=list(PATHS))
def saved(request, tmp_path_factory):
    teacher = teacher_of(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    teacher.save_pretrained(folder)
    return request.param, teacher, str(folder)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(**inputs()).logits


def shortened(teacher: Any, path: str, layers: list[int]) -> Any:
    """The oracle: the teacher itself, the other layers taken out of its list."""
    model = copy.deepcopy(teacher)
    parent, _, name = path.rpartition(".")
    kept = torch.nn.ModuleList(model.get_submodule(path)[i] for i in layers)
    setattr(model.get_submodule(parent), name, kept)
    model.config.num_hidden_layers = len(layers)
    if hasattr(model.config, "layer_types"):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    return model


@pytest.mark.parametrize("layers", [[0], [0, 2], [0, 1, 3], [0, 1, 2, 3]])
def test_student_computes_what_the_shortened_teacher_does(saved, layers):
    kind, teacher, folder = saved
    assert find_layers(teacher) == PATHS[kind]
    student = student_from_teacher(folder, layers)
    assert student.config.num_hidden_layers == len(layers) == len(student.get_submodule(PATHS[kind]))
    expected = logits(shortened(teacher, PATHS[kind], layers))
    torch.testing.assert_close(logits(student), expected, rtol=0, atol=0)
    assert len(layers) == LAYERS or not torch.allclose(expected, logits(teacher))


def test_student_is_saved_and_loaded(saved, tmp_path):
    _, _, folder = saved
    student = student_from_teacher(folder, [0, 2])
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(student)) and again.config.id2label == dict(enumerate(NAMES))


def test_head_follows_the_order_of_classes(saved):
    _, teacher, folder = saved
    student = student_from_teacher(folder, list(range(LAYERS)), classes=NAMES[::-1])
    assert student.config.id2label == dict(enumerate(NAMES[::-1]))
    torch.testing.assert_close(logits(student), logits(teacher).flip(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [["x", "y", "z", "w"], ["a", "b"]], ids=["other names", "fewer"])
def test_other_classes_get_a_new_head_on_the_same_encoder(saved, classes):
    kind, teacher, folder = saved
    student = student_from_teacher(folder, [0, 1], classes=classes)
    assert logits(student).shape == (3, len(classes)) and len(classes) == student.config.num_labels
    base = student.base_model.state_dict()
    expected = shortened(teacher, PATHS[kind], [0, 1]).base_model.state_dict()
    assert base.keys() == expected.keys() and all(torch.equal(base[k], expected[k]) for k in base)
    assert not torch.allclose(logits(student)[:, :2], logits(shortened(teacher, PATHS[kind], [0, 1]))[:, :2])


def test_without_its_first_layer_modernbert_loses_a_norm_and_says_so(saved):
    kind, teacher, folder = saved
    if kind == "modernbert":
        with pytest.warns(UserWarning, match=r"`layers`: \['model.layers.0.attn_norm.weight'\] have no place"):
            student = student_from_teacher(folder, [1, 3])
        assert student.config.layer_types == ["sliding_attention"] * 2
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = student_from_teacher(folder, [1, 3])
    torch.testing.assert_close(logits(student), logits(shortened(teacher, PATHS[kind], [1, 3])), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [[], [4], [-1], [2, 0], [0, 0]])
def test_layers_that_are_not_there_are_refused(saved, layers):
    kind, _, folder = saved
    with pytest.raises(ValueError, match=rf"`layers`: expected different numbers from 0 to 3.*{PATHS[kind]}"):
        student_from_teacher(folder, layers)


def test_layers_that_are_shared_cannot_be_chosen(tmp_path):
    build("albert").float().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="`layers`: expected a model that keeps its 2 layers in a list, found none in Alb"
    ):
        student_from_teacher(str(tmp_path), [0])


def test_no_such_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match="`teacher`: expected a folder with safetensors or a name on the Hub"):
        student_from_teacher(str(tmp_path / "none"), [0])


@pytest.mark.skipif(not default_model().startswith("/"), reason="the offline MiniLM is not installed")
def test_minilm_cut_to_two_layers_is_minilm_s_first_and_fourth():
    student = student_from_teacher(default_model(), [0, 3], classes=NAMES)
    teacher = AutoModelForSequenceClassification.from_pretrained(default_model(), num_labels=CLASSES)
    oracle = shortened(teacher, PATHS["bert"], [0, 3])
    with torch.no_grad():
        found, expected = (m.eval().base_model(**inputs()).pooler_output for m in (student, oracle))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert student.config.id2label == dict(enumerate(NAMES))
