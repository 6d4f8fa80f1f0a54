"""`amal-hf train` with method "denoise", then `amal-hf denoise`: what comes out, what is refused before training."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk

from amal_hf.cli import main
from amal_hf.labeling import VoteWarning
from amal_hf.report import write_report, write_trust_table
from amal_hf.report.functions import interval
from amal_hf.run_folder.corrected import denoise

NAMES = ["right", "sometimes", "random"]
SETTINGS = {
    "method": "denoise",
    "votes_column": "weak_labels",
    "train_on_labels": False,
    "clean_split": "validation",
    "classes": planted.NAMES,
    **{name: value for name, value in planted.SETTINGS.items() if name != "meta_batch_size"},
}


def rows(n: int, seed: int, label: bool) -> list[dict[str, Any]]:
    made = planted.make_rows(n, seed=seed, tokens=False)
    names = made.features["label"].names
    kept = [{"text": row["text"], "label": names[row["truth"]], "weak_labels": row["weak_labels"]} for row in made]
    return kept if label else [{k: v for k, v in row.items() if k != "label"} for row in kept]


def write(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, some in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    planted.make_student().save_pretrained(folder)
    planted.make_tokenizer().save_pretrained(folder)
    return folder


def train(place: Path, model: Path, *flags: str, **settings: Any) -> int:
    given = {**SETTINGS, "data": str(place / "data"), "model": str(model), "output_dir": str(place / "run"), **settings}
    (place / "config.yaml").write_text(yaml.safe_dump(given))
    return main(["train", str(place / "config.yaml"), *flags])


def splits() -> dict[str, list[dict[str, Any]]]:
    return {"train": rows(60, 0, False), "validation": rows(24, 1, True), "test": rows(30, 2, True)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    place = tmp_path_factory.mktemp("place")
    write(place / "data", splits())
    (place / "data" / "lfs.json").write_text(json.dumps(NAMES))
    assert train(place, model) == 0
    return place / "run"


# ---- what comes out ----


@pytest.mark.slow
def test_two_processes_write_the_run_of_one(model, tmp_path):
    """The README's launch: whole batches (252 and 32 rows), so the same weights, metrics and corpus."""
    write(tmp_path / "data", {**splits(), "test": rows(32, 2, True)})
    assert train(tmp_path, model, per_device_train_batch_size=6) == 0
    run, alone = tmp_path / "run", (tmp_path / "run").rename(tmp_path / "alone")
    given = {**yaml.safe_load((tmp_path / "config.yaml").read_text()), "per_device_train_batch_size": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1",
              "--main_process_port", "0"]  # fmt: skip
    command = [sys.executable, *launch, "-m", "amal_hf", "train", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in alone.iterdir())
    one, two = (denoise(folder) for folder in (alone, run))
    for column in ("probabilities", "confidence"):
        np.testing.assert_allclose(one[column][:], two[column][:], atol=1e-4)
    for mine, theirs in zip(one["trust"][:], two["trust"][:], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    metrics = [json.loads((folder / "metrics.json").read_text())["test"] for folder in (alone, run)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)


def test_sources_are_called_by_their_functions(run_dir):
    run = json.loads((run_dir / "run.json").read_text())
    assert run["sources"] == [*(f"rules/{name}" for name in NAMES), "probe", "clean"]
    assert run["data"] == {"train": 60, "test": 30, "clean": 24}
    assert run["asserts"]["probe"] == "probe" and run["asserts"]["clean"] is None and run["primary"] is None
    assert set(json.loads((run_dir / "metrics.json").read_text())) == {"test"}
    assert "No label is a source of this run" in (run_dir / "report.html").read_text()


def test_functions_without_names_are_numbered(tmp_path, model):
    write(tmp_path / "data", splits())
    assert train(tmp_path, model, num_train_epochs=1) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sources"][:3] == ["rules/0", "rules/1", "rules/2"]


def test_corpus_goes_round(run_dir, tmp_path, capsys):
    assert main(["denoise", str(run_dir), str(tmp_path / "corpus")]) == 0
    assert "60 rows, mean confidence 0." in capsys.readouterr().out
    saved = load_from_disk(str(tmp_path / "corpus"))
    parquet = load_dataset(
        "parquet",
        data_files=str(tmp_path / "corpus" / "corpus.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    classes = saved.features["label"].names
    assert parquet["label"][:] == [classes[y] for y in saved["label"]]
    assert parquet["votes"][:] == [[classes[v] if v >= 0 else None for v in row] for row in saved["votes"]]
    others = [name for name in saved.column_names if name not in ("label", "votes")]
    assert parquet.column_names == saved.column_names
    assert parquet.select_columns(others)[:] == saved.select_columns(others)[:]
    assert "null" not in str(saved.features)
    assert saved["row_id"][:] == list(range(60))
    assert saved["text"][:] == [row["text"] for row in splits()["train"]]
    assert saved["votes"][:] == [row["weak_labels"] for row in splits()["train"]]
    probabilities = np.array(saved["probabilities"][:])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert saved["label"][:] == probabilities.argmax(1).tolist()
    np.testing.assert_allclose(saved["confidence"][:], probabilities.max(1))
    assert isinstance(saved.features["label"], ClassLabel) and saved.features["label"].names == planted.NAMES
    trust = saved["trust"][:]
    assert list(trust[0]) == [
        *(f"rules/{name}" for name in NAMES),
        "probe",
    ]  # the clean rows' classes speak on none of them
    for told, votes in zip(trust, saved["votes"][:], strict=True):
        assert [told[f"rules/{name}"] is None for name in NAMES] == [vote == -1 for vote in votes]
    truth = np.arange(60) % 3
    assert (np.array(saved["label"][:]) == truth).mean() > 0.9  # one of the functions is always right


def test_corpus_is_replaced_and_nothing_else_is(run_dir, tmp_path):
    denoise(run_dir, tmp_path / "corpus")
    assert len(denoise(run_dir, tmp_path / "corpus")) == 60
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="`OUT`: expected a new or empty folder"):
        denoise(run_dir, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "mine"]
    with pytest.raises(FileNotFoundError, match="`RUN_DIR`"):
        denoise(tmp_path)


def test_row_ids_are_the_users(tmp_path, model):
    """Ids of one's own stay; without any they count the file's rows, also where clean rows are held out of it."""
    given = splits()
    given["train"] = [row | {"row_id": 1000 - i} for i, row in enumerate(given["train"])]
    write(tmp_path / "data", given)
    assert train(tmp_path, model, num_train_epochs=1) == 0
    corpus = denoise(tmp_path / "run")
    assert corpus["row_id"][:] == list(range(1000, 940, -1))
    assert corpus["text"][:] == [row["text"] for row in given["train"]]
    every = rows(90, 5, True)
    (tmp_path / "data" / "validation.jsonl").unlink()
    write(tmp_path / "data", {"train": every})
    assert train(tmp_path, model, num_train_epochs=1, clean_split="", clean_rows=5, selection_rows=5) == 0
    corpus = denoise(tmp_path / "run")
    assert len(corpus) == 60 and corpus["text"][:] == [every[i]["text"] for i in corpus["row_id"]]


# ---- the trust table ----


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "trust_table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_trust_table_counts(run_dir):
    lines = table(run_dir)
    corpus = denoise(run_dir)
    votes, label = np.array(corpus["votes"][:]), np.array(corpus["label"][:])
    assert lines[0]["function"] == "random" and len(lines) == 3
    wrong = [float(line["wrong"]) for line in lines]
    assert wrong == sorted(wrong, reverse=True)
    for line in lines:
        j = NAMES.index(line["function"])
        said, cast = votes[:, j], votes[:, j] >= 0
        trust = np.array([told[f"rules/{NAMES[j]}"] or 0 for told in corpus["trust"]])
        assert float(line["coverage"]) == pytest.approx(cast.mean(), abs=1e-4)
        assert float(line["wrong"]) == pytest.approx((cast & (said != label)).mean(), abs=1e-4)
        assert float(line["corrected_accuracy"]) == pytest.approx((said == label)[cast].mean(), abs=1e-4)
        assert float(line["trust"]) == pytest.approx(trust[cast].mean(), abs=1e-4)
        for c, name in enumerate(planted.NAMES):
            assert int(line[f"votes {name}"]) == (said == c).sum()
            assert float(line[f"trust {name}"]) == pytest.approx(trust[said == c].mean(), abs=1e-4)
        clean = [(row["weak_labels"][j], planted.NAMES.index(row["label"])) for row in splits()["validation"]]
        right, number = sum(v == t for v, t in clean), sum(v >= 0 for v, _ in clean)
        assert int(line["clean_votes"]) == number
        assert float(line["clean_accuracy"]) == pytest.approx(right / number, abs=1e-4)
        assert (float(line["clean_low"]), float(line["clean_high"])) == pytest.approx(wilson(right, number), abs=1e-4)


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson (1927), as his formula stands."""
    p, scale = right / of, 1 + z * z / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return (middle - half) / scale, (middle + half) / scale


def test_wilson_at_its_ends():
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(5, 5) == pytest.approx(wilson(5, 5)) and interval(0, 7)[0] == pytest.approx(0, abs=1e-12)


def test_rows_that_explain_it(run_dir):
    told = [json.loads(line) for line in (run_dir / "trust_rows.jsonl").read_text().splitlines()]
    corpus = denoise(run_dir)
    for name in NAMES:
        mine = [line for line in told if line["function"] == name]
        least, most = ([line["trust"] for line in mine if line["trusted"] == which] for which in ("least", "most"))
        spoken = sorted(t[f"rules/{name}"] for t in corpus["trust"] if t[f"rules/{name}"] is not None)
        assert least == sorted(least) and most == sorted(most, reverse=True)
        assert len(least) == min(20, (len(spoken) + 1) // 2) and len(most) == min(20, len(spoken) // 2)
        np.testing.assert_allclose([*least, *most[::-1]], [*spoken[: len(least)], *spoken[-len(most) :]], atol=1e-4)
        assert len({line["row_id"] for line in mine}) == len(mine)
        for line in mine:
            row = corpus[line["row_id"]]
            assert line["text"] == row["text"] and line["corrected"] == planted.NAMES[row["label"]]
            assert line["vote"] == planted.NAMES[row["votes"][NAMES.index(name)]]


def test_the_page_shows_it_as_text(run_dir, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    saved = load_from_disk(str(run_dir / "rows"))
    hostile = "<script>alert('x')</script>"
    texts = [f"{hostile} {text}" for text in saved["text"]]
    saved.remove_columns("text").add_column("text", texts).save_to_disk(str(folder / "rows"))
    run = (run_dir / "run.json").read_text().replace("rules/random", "rules/<b>random</b>")
    (folder / "run.json").write_text(run)
    page = write_report(folder).read_text()
    start = page.index("Which rule to mend first")
    section = page[start : page.index("<section>", start)]
    assert "<script" not in page and "<b>random" not in page and "&lt;script&gt;" in section
    functions = re.findall(r'<tr><td class="name">(.*?)</td>', section)
    assert functions == [line["function"].replace("random", "&lt;b&gt;random&lt;/b&gt;") for line in table(run_dir)]
    assert section.count("<details") == 3
    assert write_trust_table(folder) == folder / "trust_table.csv"


def test_no_functions_no_table(tmp_path, model):
    write(tmp_path / "data", {"train": rows(40, 0, True), "validation": rows(24, 1, True)})
    assert train(tmp_path, model, method="fixed", votes_column="", train_on_labels=True, num_train_epochs=1,
                 selection_split="validation", classes=planted.NAMES) == 0  # fmt: skip
    assert not (tmp_path / "run" / "trust_table.csv").exists()
    assert "Which rule" not in (tmp_path / "run" / "report.html").read_text()
    corpus = denoise(tmp_path / "run")
    assert corpus["label_before"][:3] != [None] * 3 and "votes" not in corpus.column_names
    assert "null" not in str(corpus.features)


# ---- what is refused, or warned of, before training ----


def changed(split: str, column: str, value: Any, at: int = 3) -> dict[str, list[dict[str, Any]]]:
    made = splits()
    made[split][at][column] = value
    return made


def with_votes(split: str, votes: Any) -> dict[str, list[dict[str, Any]]]:
    made = splits()
    made[split] = [row | {"weak_labels": votes(row["weak_labels"])} for row in made[split]]
    return made


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a vote for no class": (changed("train", "weak_labels", [0, 1, 3]), {}, "`weak_labels of train`.*votes 3 on row 3"),
    "a vote below -1": (changed("train", "weak_labels", [0, -2, 1]), {}, "`weak_labels of train`.*votes -2 on row 3"),
    "a clean vote for no class": (
        changed("validation", "weak_labels", [7, 0, 0]), {}, "`weak_labels of clean rows`.*votes 7",
    ),
    "a row with fewer votes": (changed("train", "weak_labels", [0, 1]), {}, "`weak_labels`: expected as many.*2 to 3"),
    "clean rows with fewer functions": (
        with_votes("validation", lambda votes: votes[:2]), {}, "`weak_labels`.*same 3 functions on the clean rows.*2",
    ),
    "votes that are words": (with_votes("train", lambda votes: ["air"] * 3), {}, "`weak_labels`: .*integers"),
    "no votes": (with_votes("train", lambda votes: votes), {"votes_column": "rules"}, "`train_dataset`.*'rules'"),
    "no clean rows": (
        {**splits(), "validation": splits()["validation"][:1]}, {}, "`clean_dataset`: .*2 of the 3 classes",
    ),
    "no clean split": ({k: v for k, v in splits().items() if k != "validation"}, {}, "`clean_split`.*'validation'"),
    "clean of rows without labels": (
        {k: v for k, v in splits().items() if k != "validation"}, {"clean_split": "", "clean_rows": 5},
        "`train`: expected 'label' on its rows, found none",
    ),
    "nobody says what is clean": (
        {k: v for k, v in splits().items() if k != "validation"}, {"clean_split": ""}, "`clean_split`: .*clean_rows: N",
    ),
    "a text that is missing": (changed("test", "text", None), {}, r"`text`: .*'test', found 1 without, e.g. row"),
    "a class that is none": (changed("validation", "label", "fire"), {}, "`classes`.*'fire'"),
    "clean rows that stand in train": (
        {**splits(), "train": rows(60, 0, False) + rows(24, 1, False)}, {"strict": True}, "24 of clean's rows also",
    ),
    "selection rows that are not there": (splits(), {"eval_strategy": "epoch"}, "eval_dataset"),
    "batches of copies": (
        splits(), {"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy`: .*copies of one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_before_training(case, tmp_path, model, capsys):
    given, settings, told = REFUSED[case]
    write(tmp_path / "data", given)
    assert train(tmp_path, model, **settings) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("amal-hf train: ") and re.search(told, error), error
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_names_of_other_functions(tmp_path, model, capsys):
    write(tmp_path / "data", splits())
    (tmp_path / "data" / "lfs.json").write_text(json.dumps([*NAMES, "fourth"]))
    assert train(tmp_path, model) == 2
    assert re.search(r"`weak_labels of train`: expected 4 votes.*found 3", capsys.readouterr().err)


def test_classes_in_another_order_than_the_votes(tmp_path, model, capsys):
    """Labels are matched by name; votes are numbers and would change their meaning."""
    write(tmp_path / "data", splits())
    (tmp_path / "data" / "lfs.json").write_text(json.dumps(NAMES))
    (tmp_path / "data" / "summary.json").write_text(json.dumps({"classes": planted.NAMES}))
    assert train(tmp_path, model, classes=planted.NAMES[::-1]) == 2
    assert re.search(r"`classes`: expected the classes that the votes count", capsys.readouterr().err)


@pytest.mark.parametrize("classes", [planted.NAMES, []])
def test_files_that_order_classes_otherwise(classes, tmp_path, model, capsys):
    """Saved splits whose label maps differ: refused without `classes`; with them, votes of the first map count."""
    made = DatasetDict({name: Dataset.from_list(some) for name, some in splits().items()})
    for name, order in (("validation", planted.NAMES[::-1]), ("test", planted.NAMES)):
        indices = [order.index(label) for label in made[name]["label"]]
        coded = made[name].remove_columns("label").add_column("label", indices)
        made[name] = coded.cast_column("label", ClassLabel(names=order))
    made.save_to_disk(str(tmp_path / "data"))
    assert train(tmp_path, model, classes=classes) == 2
    assert re.search("`classes`: expected the (same )?classes", capsys.readouterr().err)


def test_odd_votes_are_warned_of_and_trained_on(tmp_path, model):
    """A class that no function votes for, a function that never votes, and clean rows that stand in train."""
    given = with_votes(
        "train", lambda votes: [votes[0] if votes[0] != 2 else -1, votes[1] if votes[1] != 2 else -1, -1]
    )
    given["train"] += [{"text": given["validation"][0]["text"], "weak_labels": [0, -1, -1]}]
    write(tmp_path / "data", given)
    with pytest.warns(UserWarning) as told:
        assert train(tmp_path, model, num_train_epochs=1) == 0
    said = [str(warning.message) for warning in told if issubclass(warning.category, VoteWarning)]
    assert any("no function votes for class(es) ['land']" in each for each in said)
    assert any("['2'] never vote" in each for each in said)
    assert any("1 of clean's rows also stand in train" in str(warning.message) for warning in told)
    corpus = denoise(tmp_path / "run")
    assert "null" not in str(corpus.features) and "rules/2" not in corpus.features["trust"]
    silent = next(line for line in table(tmp_path / "run") if line["function"] == "2")
    assert silent["coverage"] == "0.0" and silent["trust"] == "" and silent["corrected_accuracy"] == ""


def test_rows_without_votes_abstain(tmp_path, model):
    write(tmp_path / "data", changed("train", "weak_labels", None))
    assert train(tmp_path, model, num_train_epochs=1) == 0
    assert denoise(tmp_path / "run")[3]["votes"] == [-1, -1, -1]


def test_no_label_of_a_training_row_is_read(tmp_path, model):
    """Missing or wrong labels in train, with train_on_labels off, change nothing."""
    weights = []
    for labels in (None, "air"):
        given = splits()
        given["train"] = [row | {"label": labels if i % 2 else "sea"} for i, row in enumerate(given["train"])]
        write(tmp_path / "data", given)
        assert train(tmp_path, model, num_train_epochs=1, selection_split="test") == 0
        weights.append(load_from_disk(str(tmp_path / "run" / "weights"))[:])
    assert weights[0] == weights[1]


def test_rows_half_of_which_have_a_label_stay_in_train(tmp_path, model):
    given = splits()
    given["train"] = [row | {"label": "sea" if i % 2 else None} for i, row in enumerate(given["train"])]
    write(tmp_path / "data", given)
    assert train(tmp_path, model, num_train_epochs=1) == 0
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())) == {"test"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train"] == 60
