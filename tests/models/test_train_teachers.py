"""Teachers inside `amal-hf train`: found, fine-tuned where they have no head, read once, copied, judged."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, load_from_disk
from planted import NAMES, make_rows, make_student, make_tokenizer
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from amal_hf import AMALTrainer
from amal_hf.cli import main
from amal_hf.commands._config import read_config
from amal_hf.commands.train import prepare, train_run
from amal_hf.models import teacher_cache as cache

ROWS, CLEAN = 60, 12


def texts(n: int = ROWS, seed: int = 0, wrong: float = 0.0) -> Dataset:
    return make_rows(n, seed, wrong, tokens=False).remove_columns(["teacher_logits", "weak_labels", "truth"])


def save_teacher(folder: Path, seed: int = 0, names: list[str] = NAMES) -> str:
    model = make_student(seed=seed)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def save_encoder(folder: Path) -> str:
    """Weights without a head; its configuration says so."""
    make_student().bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Rows with noisy labels, test rows, an encoder, and two checkpoints whose classes stand in different orders."""
    folder = tmp_path_factory.mktemp("corpus")
    DatasetDict(train=texts(wrong=0.3), test=texts(15, 1)).save_to_disk(folder / "data")
    save_encoder(folder / "encoder")
    for number, names in ((9, NAMES), (10, NAMES[::-1])):
        save_teacher(folder / "t" / f"checkpoint-{number}", number, names)
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def settings(corpus: Path, out: Path, **given: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "data": str(corpus / "data"), "output_dir": str(out), "clean_rows": CLEAN // 3, "selection_rows": CLEAN // 3,
        "max_steps": 3, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False, "per_device_train_batch_size": 16, "save_strategy": "no",
    }  # fmt: skip
    if "student" not in given:
        good["model"] = str(corpus / "encoder")
    return {**good, **given}


def written(path: Path, given: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(given))
    return str(path)


def prepared(tmp_path: Path, given: dict[str, Any]) -> Any:
    data, args, sources = read_config([written(tmp_path / "config.yaml", given)])
    return (*prepare(data, args, sources), args)


# ---- several teachers, one of whose layers the student is made ----


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory) -> tuple[Path, str]:
    """A run of both checkpoints, its student the first layer of the first; and the YAML it was made of."""
    out = tmp_path_factory.mktemp("runs") / "two"
    given = settings(
        corpus, out, teachers=str(corpus / "t" / "checkpoint-*"), student={"from": "teacher", "layers": [0]}
    )
    config = written(out.parent / "two.yaml", given)
    assert main(["train", config]) == 0
    return out, config


def oracle(folder: Path, said: list[str]) -> torch.Tensor:
    """A teacher's probabilities in the data's order of classes, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    order = [model.config.label2id[name] for name in NAMES]
    with torch.no_grad():
        each = [model(**make_tokenizer()(text, return_tensors="pt")).logits[:, order] for text in said]
    return torch.cat(each).softmax(1)


def test_every_checkpoint_is_a_source_of_its_own(corpus, two):
    run = json.loads((two[0] / "run.json").read_text())
    assert run["sources"] == ["label", "checkpoint-9", "checkpoint-10", "probe", "clean"]
    said = {"label": "label", "checkpoint-9": "teachers/0", "checkpoint-10": "teachers/1", "probe": "probe"}
    assert {name: what for name, what in run["asserts"].items() if what} == said
    rows = load_from_disk(str(two[0] / "rows"))
    said, sure = np.asarray(rows["teachers"][:]), np.asarray(rows["teachers_confidence"][:])
    for column, number in enumerate((9, 10)):
        expected = oracle(corpus / "t" / f"checkpoint-{number}", rows["text"][:])
        assert said[:, column].tolist() == expected.argmax(1).tolist()
        np.testing.assert_allclose(sure[:, column], expected.amax(1), rtol=0, atol=1e-5)
    assert (said[:, 0] != said[:, 1]).any()


def test_the_table_counts_what_the_rows_say(corpus, two):
    run_dir, config = two
    parts = prepared(run_dir.parent, yaml.safe_load(Path(config).read_text()))[1]
    rows, clean = load_from_disk(str(run_dir / "rows")), parts["clean"]
    with (run_dir / "teacher_table.csv").open() as file:
        table = list(csv.DictReader(file))
    for column, number in enumerate((9, 10)):
        lines = [line for line in table if line["teacher"] == f"checkpoint-{number}"]
        guess = oracle(corpus / "t" / f"checkpoint-{number}", clean["text"][:]).argmax(1).numpy()
        right = guess == np.asarray(clean["label"][:])
        weights = np.asarray(rows["weights"][:])[:, 1 + column]
        seen = np.asarray(rows["mask"][:])[:, 1 + column]
        (overall,) = [line for line in lines if line["part"] == "overall"]
        assert (int(overall["rows"]), int(overall["clean_rows"])) == (len(rows), CLEAN)
        assert float(overall["clean_accuracy"]) == pytest.approx(right.mean(), abs=1e-4)
        assert float(overall["trust"]) == pytest.approx(weights[seen].mean(), abs=1e-4)
        said = np.asarray(rows["teachers"][:])[:, column]
        for line in (line for line in lines if line["part"] == "says"):
            c = NAMES.index(line["value"])
            assert (int(line["rows"]), int(line["clean_rows"])) == ((said == c).sum(), (guess == c).sum())
        for part in ("says", "confidence"):
            assert sum(int(line["rows"]) for line in lines if line["part"] == part) == len(rows)
            assert sum(int(line["clean_rows"]) for line in lines if line["part"] == part) == CLEAN
        for line in lines:
            if line["clean_accuracy"]:
                assert float(line["clean_low"]) <= float(line["clean_accuracy"]) <= float(line["clean_high"])


def test_disagreements_name_the_trusted_source(two):
    rows = {row["row_id"]: row for row in load_from_disk(str(two[0] / "rows"))}
    lines = [json.loads(line) for line in (two[0] / "disagreements.jsonl").read_text().splitlines()]
    assert {line["row_id"] for line in lines} == {
        i for i, row in rows.items() if any(said != row["label"] for said in row["teachers"])
    }
    for line in lines:
        row = rows[line["row_id"]]
        assert line["text"] == row["text"] and line["label"] == NAMES[row["label"]]
        assert [said["class"] for said in line["teachers"].values()] == [NAMES[c] for c in row["teachers"]]
        assert line["student"] == NAMES[row["student"]]
        if line["weights"]:
            assert line["weights"][line["believed"]] == max(line["weights"].values())
    against = [max(s["confidence"] for s in x["teachers"].values() if s["class"] != x["label"]) for x in lines]
    assert against == sorted(against, reverse=True)


def test_the_report_shows_both(two):
    html = (two[0] / "report.html").read_text()
    assert "Which teacher to believe where" in html and "sure 0." in html
    assert html.count("data-disagreement=") == min(30, len((two[0] / "disagreements.jsonl").read_text().splitlines()))


def test_the_student_is_made_of_the_first_teacher(two):
    student = AutoModelForSequenceClassification.from_pretrained(two[0])
    assert student.config.num_hidden_layers == 1
    assert list(student.config.id2label.values()) == NAMES


def test_a_second_run_reads_no_teacher(two, monkeypatch):
    monkeypatch.setattr(cache.Reader, "outputs", lambda *given: pytest.fail("a teacher was read again"))
    prepared(two[0].parent, yaml.safe_load(Path(two[1]).read_text()))


def test_the_copied_layers_start_as_the_teacher_s(corpus, tmp_path):
    """With all its layers, the student starts where its teacher stands: born again."""
    from amal_hf.models.student import make_student as made

    teacher = corpus / "t" / "checkpoint-10"
    said = texts(5, 2)["text"][:]
    given = settings(corpus, tmp_path / "run", teacher=str(teacher), student={"from": "teacher"})
    data, _, losses, _ = prepared(tmp_path, given)
    assert list(losses) == ["label", "teacher"]
    student, tokenizer = made(data, NAMES)
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(oracle(tmp_path / "student", said), oracle(teacher, said), rtol=0, atol=1e-6)
    flag = ["--student", "{from: teacher, layers: [1]}"]
    config = written(tmp_path / "flags.yaml", {k: v for k, v in given.items() if k != "student"})
    data, args, _ = read_config([config, *flag])
    student, _ = made(prepare(data, args)[0], NAMES)
    kept = AutoModelForSequenceClassification.from_pretrained(teacher).bert.encoder.layer[1].state_dict()
    assert all(torch.equal(kept[k], v) for k, v in student.bert.encoder.layer[0].state_dict().items())


# ---- a teacher that has no head yet ----


class Watched(AMALTrainer):
    """Remembers what teachers were trained on."""

    seen: list[list[str]]

    def train(self, *given: Any, **more: Any) -> Any:
        self.seen.append(self.train_dataset["text"][:])
        assert self.clean_dataset is None and self.eval_dataset is None
        return super().train(*given, **more)


@pytest.fixture
def trained(monkeypatch):
    Watched.seen = []
    monkeypatch.setattr("amal_hf.models.fine_tune.AMALTrainer", Watched)
    return Watched.seen


def test_an_encoder_is_fine_tuned_first_and_once(corpus, tmp_path, trained, caplog):
    out = tmp_path / "run"
    given = settings(
        corpus, out, teacher=str(corpus / "encoder"), teacher_epochs=12, teacher_learning_rate=5e-3,
        student={"from": "teacher", "layers": [0]},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        data, parts, losses, args = prepared(tmp_path, given)
    told = [record.getMessage() for record in caplog.records if "has no trained head" in record.getMessage()]
    assert len(told) == 1 and "fine-tuned on 36 training labels for 12 epochs" in told[0]
    # the training rows, and no other
    assert trained == [parts["train"]["text"][:]] and len(trained[0]) == ROWS - 2 * CLEAN
    others = {text for name in ("clean", "selection", "test") for text in parts[name]["text"]}
    assert not others & set(trained[0])
    # it learned them, knows the classes' names, and speaks in the columns
    learned = oracle(out / "teacher", parts["train"]["text"][:])
    assert (learned.argmax(1).numpy() == np.asarray(parts["train"]["label"][:])).mean() > 0.6
    logits = torch.tensor(parts["clean"]["teacher_logits"][:])
    torch.testing.assert_close(logits.softmax(1), oracle(out / "teacher", parts["clean"]["text"][:]), rtol=0, atol=1e-5)
    assert data.teachers == [str(out / "teacher")] and list(losses) == ["label", "teacher"]
    # the next run with these settings takes it as it is, and one with others does not
    train_run(parts, data, args, losses)
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 1
    before = load_file(out / "teacher" / "model.safetensors")
    caplog.clear()
    prepared(tmp_path, given)
    assert len(trained) == 1 and any("fine-tuned on these rows before" in r.getMessage() for r in caplog.records)
    prepared(tmp_path, {**given, "teacher_epochs": 1})
    assert len(trained) == 2
    assert not torch.equal(
        before["classifier.weight"], load_file(out / "teacher" / "model.safetensors")["classifier.weight"]
    )


def test_several_encoders_each_have_a_folder(corpus, tmp_path, trained):
    other = save_encoder(tmp_path / "other")
    given = settings(
        corpus, tmp_path / "run", teachers=[str(corpus / "encoder"), str(corpus / "t" / "checkpoint-9"), other],
        teacher_names=["a", "b", "c"], teacher_epochs=1,
    )  # fmt: skip
    data, parts, losses, _ = prepared(tmp_path, given)
    assert list(losses) == ["label", "a", "b", "c"] and len(trained) == 2
    folders = [tmp_path / "run" / "teacher" / "a", corpus / "t" / "checkpoint-9", tmp_path / "run" / "teacher" / "c"]
    assert data.teachers == list(map(str, folders))
    assert {"a_logits", "b_logits", "c_logits"} < {*parts["train"].column_names} & {*parts["clean"].column_names}


# ---- whom method "denoise" believes ----


def test_flipped_labels_and_a_teacher_that_guesses_lose_weight(corpus, tmp_path):
    """40 % of the labels are wrong; one teacher knows, another says what the first says of another row."""
    rows = make_rows(240, tokens=False, wrong=0.4).remove_columns("weak_labels").rename_column("truth", "true_label")
    logits = np.asarray(rows["teacher_logits"][:])
    shuffled = logits[np.random.default_rng(0).permutation(len(logits))]
    both = rows.rename_column("teacher_logits", "good_logits").add_column("bad_logits", list(shuffled))
    clean = [i for i in range(240) if both["label"][i] == both["true_label"][i]][:45]
    DatasetDict(
        train=both.select([i for i in range(240) if i not in clean]), validation=both.select(clean)
    ).save_to_disk(tmp_path / "data")
    given = settings(
        corpus, tmp_path / "run", data=str(tmp_path / "data"), method="denoise", clean_split="validation", clean_rows=0,
        teacher_columns=["good_logits", "bad_logits"], max_steps=-1, num_train_epochs=4,
    )  # fmt: skip
    data, parts, losses, args = prepared(tmp_path, given)
    trainer, _ = train_run(parts, data, args, losses)
    levels = trainer.settings.mixing_start
    assert levels[1] > 0.9 and levels[2] < 0.2  # skill on the clean rows
    weights = trainer.weights.select(range(len(parts["train"]))).with_format("numpy")
    assert np.nanmean(weights["bad"][:]) < np.nanmean(weights["good"][:]) / 4
    flipped = np.asarray(parts["train"]["label"][:]) != np.asarray(parts["train"]["true_label"][:])
    assert roc_auc_score(~flipped, weights["label"][:]) > 0.95


# ---- what a run does that was told nothing of its mixture ----


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "denoise"),
        ({"table_dtype": "float16"}, "denoise"),
        ({"method": "trust", "meta_every": 1}, "trust"),
        ({"method": "trust", "temperature": "learned"}, "trust"),
        ({"method": "fixed", "mixing_start": [0.5]}, "fixed"),
    ],
    ids=str,
)
def test_the_method_of_a_run(given, method, corpus, tmp_path):
    out = tmp_path / "run"
    teacher = str(corpus / "t" / "checkpoint-9")
    assert main(["train", written(tmp_path / "c.yaml", settings(corpus, out, teacher=teacher, **given))]) == 0
    told = json.loads((out / "run.json").read_text())
    assert told["method"] == told["config"]["method"] == method
    assert ("probe" in told["sources"]) is (method == "denoise")
    assert ("temperature/teacher" in told) is (given.get("temperature") == "learned")


@pytest.mark.parametrize("given", [{"meta_every": 1}, {"temperature": "learned"}, {"mixing": "trust"}], ids=str)
def test_no_setting_chooses_another_method(given, corpus, tmp_path, capsys):
    """What method "denoise" does not read is refused; it is not another method's run."""
    out, teacher = tmp_path / "run", str(corpus / "t" / "checkpoint-9")
    assert main(["train", written(tmp_path / "c.yaml", settings(corpus, out, teacher=teacher, **given))]) == 2
    (name,) = given
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"`{name}`: " in error and "denoise" in error and "method" in error
    assert not out.exists()


# ---- afterwards, the clean rows alone ----


@pytest.mark.slow
def test_a_last_phase_learns_the_clean_rows(corpus, tmp_path):
    """The student fits them better; what was trusted before is kept."""
    found = []
    for epochs in (0.0, 30.0):
        out = tmp_path / str(epochs)
        data, parts, losses, args = prepared(out, settings(corpus, out / "run", final_epochs=epochs))
        trainer, _ = train_run(parts, data, args, losses)
        found.append((trainer.evaluate(parts["clean"])["eval_loss"], trainer.weigher.history.last_weights()))
    (before, weights), (after, kept) = found
    assert after < before - 0.1
    assert torch.equal(weights.nan_to_num(-1), kept.nan_to_num(-1))


# ---- a teacher that abstains ----


@pytest.mark.parametrize(
    "method", ["denoise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trust", "amal-step"))]
)
def test_a_teacher_that_abstains_on_half_of_the_rows(corpus, tmp_path, method):
    """Null and NaN are both silence: no weight there, no loss, and everything finite."""
    rows = make_rows(ROWS, tokens=False, wrong=0.3).remove_columns(["weak_labels", "truth"])
    silent = [i % 2 == 0 for i in range(ROWS)]
    gap = [None, [math.nan] * 3]
    said = [
        gap[i % 4 // 2] if quiet else row
        for i, (quiet, row) in enumerate(zip(silent, rows["teacher_logits"], strict=True))
    ]
    rows = rows.remove_columns("teacher_logits").add_column("teacher_logits", said)
    rows.save_to_disk(tmp_path / "data")
    given = settings(
        corpus, tmp_path / "run", data=str(tmp_path / "data"), method=method, teacher_columns=["teacher_logits"],
        max_steps=-1, num_train_epochs=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="null or NaN on .* the teacher abstains"):
        assert main(["train", written(tmp_path / "config.yaml", given)]) == 0
    found = load_from_disk(str(tmp_path / "run" / "rows"))
    by_text = dict(zip(rows["text"], silent, strict=True))
    quiet = np.array([by_text[text] for text in found["text"]])
    teachers, sources = np.asarray(found["teachers"][:])[:, 0], json.loads((tmp_path / "run" / "run.json").read_text())
    assert ((teachers == -1) == quiet).all() and 0 < quiet.sum() < len(quiet)
    spoken = np.asarray(found["mask"][:])[:, sources["sources"].index("teacher")]
    assert not spoken[quiet].any() and spoken[~quiet].all()
    assert np.isfinite(np.asarray(found["corrected"][:])).all()
    assert math.isfinite(json.loads((tmp_path / "run" / "metrics.json").read_text())["selection"]["loss"])
    with (tmp_path / "run" / "teacher_table.csv").open() as file:
        overall = next(csv.DictReader(file))
    assert int(overall["rows"]) == (~quiet).sum() and 0 < int(overall["clean_rows"]) < CLEAN


# ---- at the door ----


def broken(folder: Path) -> str:
    """A teacher whose weights are no numbers."""
    name = save_teacher(folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return name


def regression(folder: Path) -> str:
    model = make_student()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


FROM = {"from": "teacher"}
REFUSED: dict[str, tuple[Any, str]] = {
    "teacher and teachers": (lambda c, p: {"teacher": "a", "teachers": ["b"]}, "`teacher`: expected it or `teachers`"),
    "a pattern of nothing": (lambda c, p: {"teachers": [str(p / "no-*")]}, "`teacher`: expected folders like"),
    "no such teacher": (lambda c, p: {"teacher": str(p / "none")}, "`teacher`: expected a folder or a name"),
    "other classes": (
        lambda c, p: {"teacher": save_teacher(p / "t", names=["air", "sea", "mud"])},
        "`teacher`: expected .* to name the classes of the data, found .*'mud'.*'land'",
    ),
    "another task": (
        lambda c, p: {"teacher": regression(p / "t")},
        "`teacher`: expected a teacher for the data's task",
    ),
    "no numbers": (lambda c, p: {"teacher": broken(p / "t")}, "`teacher`: expected finite logits, found NaN"),
    "layers out of range": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "student": {**FROM, "layers": [0, 2]}},
        r"`layers`: expected different numbers from 0 to 1.*found \[0, 2\]",
    ),
    "layers that are none": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "student": {**FROM, "layers": "all"}},
        "`student`: expected a model's name, or {from: teacher",
    ),
    "another origin": (lambda c, p: {"student": {"from": "me"}}, "`student`: expected a model's name, or"),
    "another key": (lambda c, p: {"student": {**FROM, "heads": 2}}, "`student`: expected a model's name, or"),
    "no teacher to copy": (lambda c, p: {"student": FROM}, "`student`: expected a teacher to copy"),
    "layers twice": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "student": FROM, "num_hidden_layers": 1},
        "`num_hidden_layers`: expected `student` alone",
    ),
    "two students": (lambda c, p: {"student": "x", "model": "y"}, "`student`: expected it or `model`, found both"),
    "no such student": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "student": str(p / "none")},
        "`model`: expected a folder or a name on the Hub",
    ),
    "no labels to learn": (
        lambda c, p: {"teacher": str(c / "encoder"), "train_on_labels": False},
        "`teacher`: expected training labels to fine-tune",
    ),
    "the name of a source": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "teacher_names": ["label"]},
        "`teacher_columns`: expected a name of its own for every source, found 'label' twice",
    ),
    "names for others": (
        lambda c, p: {"teacher": str(c / "t" / "checkpoint-9"), "teacher_names": ["a", "b"]},
        "`names`: expected 1 different names",
    ),
    "no epochs": (lambda c, p: {"teacher_epochs": 0}, "`teacher_epochs`: expected a number above 0, found 0"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_refused_before_anything_is_trained(wrong, corpus, tmp_path, trained, capsys, monkeypatch):
    make, message = REFUSED[wrong]
    monkeypatch.setattr("amal_hf.commands.train.train_run", lambda *given: pytest.fail("the student was trained"))
    given = settings(corpus, tmp_path / "run", **make(corpus, tmp_path))
    with pytest.raises((ValueError, OSError), match=rf"(?s){message}"):
        prepared(tmp_path, given)
    assert not trained and not (tmp_path / "run").exists()
    assert main(["train", str(tmp_path / "config.yaml")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_wrong_column_is_found_before_the_teacher_is_trained(corpus, tmp_path, trained):
    given = settings(corpus, tmp_path / "run", teacher=str(corpus / "encoder"), teacher_columns=["no_such_column"])
    with pytest.raises(ValueError, match="reads column"):
        prepared(tmp_path, given)
    assert not trained


def test_a_column_that_is_there_already_is_not_overwritten(corpus, tmp_path):
    rows = make_rows(ROWS, tokens=False).remove_columns(["weak_labels", "truth"])
    rows.save_to_disk(tmp_path / "data")
    given = settings(corpus, tmp_path / "run", data=str(tmp_path / "data"), teacher=str(corpus / "t" / "checkpoint-9"))
    with pytest.raises(ValueError, match=r"expected no columns \['teacher_logits'\] yet.*`teacher_names`"):
        prepared(tmp_path, given)
    _, parts, losses, _ = prepared(tmp_path, {**given, "teacher_names": ["old"], "teacher_columns": ["teacher_logits"]})
    assert list(losses) == ["label", "teacher", "old"] and "old_logits" in parts["clean"].column_names


# ---- a real encoder ----


@pytest.mark.slow
def test_minilm_teaches_two_of_its_layers(tmp_path):
    """One YAML: the plain encoder is fine-tuned, read, copied, and trusted row by row."""
    from amal_hf.commands.train import default_model

    if not Path(default_model()).is_dir():
        pytest.skip("the offline MiniLM is not installed")
    from amal_hf.corpus import load_corpus

    corpus = load_corpus()
    columns = ["text", "label"]
    parts = DatasetDict({k: corpus[k].select_columns(columns) for k in ("train", "clean", "selection", "test")})
    parts = DatasetDict({k: part.shuffle(seed=0).select(range(min(240, len(part)))) for k, part in parts.items()})
    parts.save_to_disk(tmp_path / "data")
    given = {
        "data": str(tmp_path / "data"), "output_dir": str(tmp_path / "run"), "clean_split": "clean",
        "selection_split": "selection", "teacher": default_model(), "student": {**FROM, "layers": [0, 3]},
        "teacher_epochs": 5, "teacher_learning_rate": 3e-4, "max_length": 32, "num_train_epochs": 4,
        "learning_rate": 5e-4, "report_to": "none", "use_cpu": True, "save_strategy": "no",
        "per_device_train_batch_size": 16,
    }  # fmt: skip
    assert main(["train", written(tmp_path / "config.yaml", given)]) == 0
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert student.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run" / "teacher")) == student.config.vocab_size
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 2 / len(student.config.id2label)  # twice a guess
