"""The trust report: what it shows, what it escapes, what it says when parts are absent."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from amal_hf.report import write_report, write_teacher_table
from amal_hf.report.functions import interval
from amal_hf.report.run import read_run
from amal_hf.report.summary import Classes, auroc, groups_of, least_trusted, trust
from amal_hf.report.teachers import judge_teachers

HOSTILE = "<script>alert('x')</script>"
CLASSES = ["World", "Sports", "Business $x_1$"]


def write_run(folder: Path, *, rules: int = 2, rows: int = 80, drop: tuple[str, ...] = (), **about: Any) -> Path:
    """A run folder as training leaves it: K = 2 + rules sources, N = rows rows."""
    rng = np.random.default_rng(0)
    sources = about.pop("sources", ["label", "teacher", *(f"rules/{j}" for j in range(rules))])
    truth = rng.integers(0, 3, rows)
    label = np.where(rng.random(rows) < 0.2, (truth + 1) % 3, truth)
    votes = np.where(rng.random((rows, rules)) < 0.5, -1, truth[:, None])
    weights = rng.random((rows, 2 + rules))
    weights[:, 0] = np.where(label == truth, 0.6, 0.1) + 0.3 * rng.random(rows)
    columns = {
        "row_id": np.arange(rows) + 1000,
        "text": [f"{HOSTILE} row {i} costs $5 & more" for i in range(rows)],
        "label": label,
        "majority": truth,
        "votes": votes.tolist(),
        "teacher": truth,
        "student": truth,
        "student_confidence": rng.random(rows),
        "weights": weights.tolist(),
        "mask": np.column_stack([np.ones((rows, 2), bool), votes >= 0]).tolist(),
        "true_label": truth,
    }
    Dataset.from_dict({k: v for k, v in columns.items() if k not in drop}).save_to_disk(str(folder / "rows"))
    run = {"name": "tiny", "classes": CLASSES, "sources": sources, "primary": sources[0], "method": "amal",
           "config": {"lr": 0.1}, "data": {"train": rows}, "versions": {"torch": "2"}, "seed": 1, "seconds": 75.0,
           "meta_share": 0.2}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run | about))
    line = {source: [0.5, 0.6, 0.7] for source in sources}
    history = {"step": [0, 10, 20], "epoch": [0, 1, 2], **{k: line for k in ("mean", "q10", "q50", "q90")}}
    scores = {"accuracy": 0.9, "macro_f1": 0.89, "ece": 0.03}
    comparison = [{"method": "plain", "runs": 3, **scores, "seconds": 9.0}, {"method": "amal", "runs": 3, **scores}]
    (folder / "history.json").write_text(json.dumps(history))
    (folder / "metrics.json").write_text(json.dumps({"selection": scores, "comparison": comparison}))
    return folder


def report(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_writes_one_page_and_nothing_else(tmp_path: Path) -> None:
    before = set(write_run(tmp_path).iterdir())
    page = write_report(str(tmp_path))
    assert page == tmp_path / "report.html"
    assert set(tmp_path.iterdir()) - before == {page, tmp_path / ".amal_hf.json"}  # which says that the page is ours
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and html.count("<svg") == 4 and "0.900" in html
    assert write_report(tmp_path).read_text(encoding="utf-8") == html  # the same run, the same page


def test_names_and_texts_are_shown_not_run(tmp_path: Path) -> None:
    sources = [f"{HOSTILE}&$a_1$", "teacher", "rules/<b>0</b>", "rules/1"]
    html = report(write_run(tmp_path, sources=sources, classes=[HOSTILE, *CLASSES[1:]], name=HOSTILE))
    tags = {tag for tag, _ in Tags(html).found}
    assert not tags & {"script", "link", "img", "iframe", "object"} and "<b>0</b>" not in html
    assert "&lt;script&gt;" in html
    assert "Business $x_1$" in "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))  # not set as mathematics


def test_loads_nothing(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    for tag, attributes in Tags(html).found:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in html and "http" not in re.sub(r"http-equiv", "", html)
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_across_figures(tmp_path: Path) -> None:
    ids = [attributes["id"] for _, attributes in Tags(report(write_run(tmp_path))).found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_lists_fifty_rows_least_trusted_first(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    listed = [int(i) - 1000 for i in re.findall(r'data-row="(\d+)"', html)]
    weights = read_run(tmp_path).weights[:, 0]
    assert len(listed) == 50
    assert listed == np.argsort(weights, kind="stable")[:50].tolist()


def test_rows_where_the_primary_abstains_are_not_listed(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, primary="rules/1"))
    listed = least_trusted(run)
    assert run.mask[listed, 3].all() and len(listed) == run.mask[:, 3].sum()


def test_many_sources_are_drawn_by_prefix_and_listed_one_by_one(tmp_path: Path) -> None:
    html = report(write_run(tmp_path, rules=150, rows=60))
    figures, rest = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL)), re.sub(r"<svg.*?</svg>", "", html)
    assert ">rules<" in figures and "rules/7" not in figures
    assert all(f"rules/{j}<" in rest for j in range(150))
    assert len(html) < 1_500_000


def test_groups_cover_every_source_once() -> None:
    for names in (["a", "b"], ["a", *(f"r/{j}" for j in range(9))], [f"lf{j}" for j in range(30)]):
        groups = groups_of(names, primary=len(names) - 1)
        assert sorted(k for g in groups for k in g.members) == list(range(len(names)))
        assert len(groups) <= 8
    assert groups_of([f"lf{j}" for j in range(30)], primary=29)[0].name == "lf29"


def test_trust_pools_only_covered_rows(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, rules=9))
    rules = trust(run, groups_of(run.sources)[2], Classes.of(run))
    mask, weights = run.mask[:, 2:], run.weights[:, 2:]
    assert rules.coverage == pytest.approx(mask.mean()) and rules.mean == pytest.approx(weights[mask].mean())
    assert rules.accuracy == rules.with_majority == 1.0 and np.isnan(rules.disagreeing)


def test_auroc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(1)
    score, positive = rng.integers(0, 5, 60) / 5, rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(score, np.ones(60, bool)))


def test_absent_parts_become_sentences(tmp_path: Path) -> None:
    optional = ("majority", "votes", "teacher", "student", "student_confidence", "true_label")
    write_run(tmp_path, drop=optional)
    (tmp_path / "history.json").unlink()
    (tmp_path / "metrics.json").unlink()
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({k: run[k] for k in ("classes", "sources")}))
    html = report(tmp_path)
    for sentence in ("no history.json", "no metrics.json", "No majority", "Configuration: not recorded"):
        assert sentence in html
    assert html.count("<svg") == 1 and html.count("data-row=") == 50


def test_columns_that_hold_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, drop=("votes", "teacher", "student", "text"))
    rows = Dataset.load_from_disk(str(tmp_path / "rows"))
    nothing = {"votes": [[]] * len(rows), "teacher": [None] * len(rows), "student": [None] * len(rows)}
    columns = {**rows.to_dict(), **nothing, "text": [None] * len(rows), "mask": [[True] * 3 + [None]] * len(rows)}
    (tmp_path / "rows").rename(tmp_path / "old")
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "rows"))
    run = read_run(tmp_path)
    assert run.votes.shape == (80, 0) and (run.columns["teacher"] == -1).all() and not run.mask[:, 3].any()
    assert report(tmp_path).count("data-row=") == 50


def test_rows_without_labels_or_weights_of_the_primary(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows = Dataset.load_from_disk(str(tmp_path / "rows")).map(
        lambda row: {"label": -100, "student": -1, "mask": [False, *row["mask"][1:]]}
    )
    rows.save_to_disk(str(tmp_path / "other"))
    (tmp_path / "rows").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "rows")
    html = report(tmp_path)
    assert "No rows:" in html and "No classes:" in html


def test_asserts_names_the_column_of_a_source(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, sources=["gold", "kd", "r/a", "r/b"], asserts={"kd": "teacher", "r/b": None}))
    assert (run.asserted[:, 0] == run.columns["label"]).all() and (run.asserted[:, 1] == run.columns["teacher"]).all()
    assert (run.asserted[:, 2] == run.votes[:, 0]).all() and (run.asserted[:, 3] == -1).all()


def test_votes_of_several_families_go_to_their_rules_in_order(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, sources=["label", "teacher", "words/a", "regex/a"]))
    assert (run.asserted[:, 2:] == run.votes).all()


def with_columns(folder: Path, **columns: list[Any]) -> None:
    rows = Dataset.load_from_disk(str(folder / "rows")).to_dict()
    shutil.rmtree(folder / "rows")
    Dataset.from_dict({**rows, **columns}).save_to_disk(str(folder / "rows"))


def add_teachers(folder: Path, clean: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Two teachers in place of source 1 and 2, the second silent on a third of the rows; what they say, how surely."""
    rng = np.random.default_rng(3)
    said, sure = rng.integers(0, 3, (80, 2)), 0.4 + 0.6 * rng.random((80, 2))
    said[::3, 1], sure[::3, 1] = -1, 0.0
    with_columns(folder, teachers=said.tolist(), teachers_confidence=sure.tolist())
    run = json.loads((folder / "run.json").read_text())
    run["asserts"] = {"teacher": "teachers/0", "rules/0": "teachers/1"}
    (folder / "run.json").write_text(json.dumps(run))
    if clean:
        heard = {"label": [0, 1, 2, 0], "teachers": [[0, -1], [1, 1], [0, 2], [0, 1]],
                 "teachers_confidence": [[0.99, 0.0], [0.41, 0.9], [0.99, 0.8], [0.99, 0.45]]}  # fmt: skip
        Dataset.from_dict(heard).save_to_disk(str(folder / "clean"))
    return said, sure


def test_teachers_are_judged_by_class_and_by_confidence(tmp_path: Path) -> None:
    said, sure = add_teachers(write_run(tmp_path))
    lines = judge_teachers(run := read_run(tmp_path))
    first, second = ([line for line in lines if line.teacher == name] for name in ("teacher", "rules/0"))
    assert (first[0].part, first[0].rows, first[0].clean_rows, first[0].clean_accuracy) == (
        "overall",
        80,
        4,
        0.75,
    )
    assert (first[0].clean_low, first[0].clean_high) == interval(3, 4)
    assert first[0].trust == pytest.approx(run.weights[:, 1].mean())
    zeros = first[1]  # class 0: named on three clean rows, right on two of them
    assert (zeros.part, zeros.value, zeros.rows) == ("says", "World", (said[:, 0] == 0).sum())
    assert (zeros.clean_rows, zeros.clean_accuracy) == (3, pytest.approx(2 / 3))
    quarters = [line for line in first if line.part == "confidence"]
    assert [line.rows for line in quarters] == [20] * 4
    assert [line.clean_rows for line in quarters] == [1, 0, 0, 3]  # by the training rows' quarters
    at = sure[:, 0] >= np.quantile(sure[:, 0], 0.75)
    assert quarters[-1].trust == pytest.approx(run.weights[at, 1].mean())
    assert second[0].rows == (said[:, 1] >= 0).sum() and second[0].clean_rows == 3  # not where it abstains


def test_tables_of_teachers_are_written_and_shown(tmp_path: Path) -> None:
    said, _ = add_teachers(write_run(tmp_path))
    label = np.asarray(Dataset.load_from_disk(str(tmp_path / "rows"))["label"][:])
    assert write_teacher_table(tmp_path) == tmp_path / "teacher_table.csv"
    with (tmp_path / "teacher_table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(judge_teachers(read_run(tmp_path)))
    assert table[0]["clean_accuracy"] == "0.75" and table[0]["value"] == ""
    lines = [json.loads(line) for line in (tmp_path / "disagreements.jsonl").read_text().splitlines()]
    against = ((said != label[:, None]) & (said >= 0)).any(1)
    assert {line["row_id"] - 1000 for line in lines} == set(np.flatnonzero(against).tolist())
    silent = next(line for line in lines if said[line["row_id"] - 1000, 1] < 0)
    assert list(silent["teachers"]) == ["teacher"]
    html = report(tmp_path)
    assert html.count("data-disagreement=") == min(30, against.sum()) and "&lt;script&gt;" in html
    assert not {tag for tag, _ in Tags(html).found} & {"script", "link", "img", "iframe", "object"}


def test_teachers_without_clean_rows_or_any_teacher(tmp_path: Path) -> None:
    add_teachers(write_run(tmp_path / "a"), clean=False)
    first = judge_teachers(read_run(tmp_path / "a"))[0]
    assert (first.clean_rows, first.clean_low, first.clean_high) == (0, 0.0, 1.0) and np.isnan(first.clean_accuracy)
    assert "n=0" in report(tmp_path / "a")
    assert write_teacher_table(write_run(tmp_path / "b")) is None
    assert not (tmp_path / "b" / "teacher_table.csv").exists() and "Which teacher" not in report(tmp_path / "b")


def test_a_teacher_always_as_sure_has_one_quarter(tmp_path: Path) -> None:
    add_teachers(write_run(tmp_path), clean=False)
    with_columns(tmp_path, teachers_confidence=[[1.0, 1.0]] * 80)
    lines = [line for line in judge_teachers(read_run(tmp_path)) if line.part == "confidence"]
    assert [(line.value, line.rows) for line in lines if line.teacher == "teacher"] == [("1.000 to 1.000", 80)]


def test_best_is_judged_as_printed_and_shared(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    assert html.count('class="best"') == 6  # two methods tie on three scores; one time alone is no contest
    assert html.count('<tr class="learned">') == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "run.json").unlink(), FileNotFoundError, r"`run_dir`: expected .*found no run\.json"),
        (lambda f: (f / "rows").rename(f / "other"), FileNotFoundError, r"`run_dir`: expected .*found no rows"),
        (lambda f: (f / "run.json").write_text("{"), ValueError, r"`run\.json`: expected JSON"),
        (lambda f: (f / "history.json").write_text("[]"), ValueError, r"`history\.json`: expected a JSON object"),
        (lambda f: (f / "run.json").write_text("{}"), ValueError, r"`run\.json`: expected 'sources'"),
        (
            lambda f: (f / "history.json").write_text('{"step": [1], "mean": {"label": [1, 2]}}'),
            ValueError,
            r"`history\.json`: expected 1 in 'mean' of 'label'.*found 2",
        ),
        (lambda f: write_run(f, sources=["a"]), ValueError, r"`rows`: expected 1 weights per row.*found 4"),
        (lambda f: write_run(f, drop=("mask",)), ValueError, r"`rows`: expected .*no \['mask'\]"),
        (
            lambda f: with_columns(f, teachers=[[0, 1]] * 80, teachers_confidence=[[0.5]] * 80),
            ValueError,
            r"`rows`: expected as many `teachers_confidence` as `teachers` per row, found 1 and 2",
        ),
        (lambda f: write_run(f, primary="who"), ValueError, r"`run\.json`: expected 'primary'.*found 'who'"),
        (lambda f: (f / "rows" / "state.json").unlink(), ValueError, r"`rows`: expected a folder written by"),
    ],
)
def test_errors_say_what_was_expected(tmp_path: Path, change: Any, error: type[Exception], message: str) -> None:
    change(write_run(tmp_path / "run"))
    with pytest.raises(error, match=message):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`run_dir`: expected a run folder, found nothing"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(("asserts", "drawn"), [({"label": "label"}, True), ({"label": None}, False)])
def test_a_histogram_of_no_row_is_not_drawn(asserts, drawn, tmp_path):
    """A first source that names no class agrees with nobody: without the chart, not a flat line from -4 % to 4 %."""
    html = report(write_run(tmp_path, asserts={"teacher": "teacher", **asserts}, drop=("true_label",)))
    shares = re.findall(r"<text[^>]*>([^<]*) %</text>", html)
    assert bool(re.search(r"<text[^>]*>λ of label</text>", html)) == bool(shares) == drawn
    assert not [share for share in shares if share.strip()[0] in "-\N{MINUS SIGN}"]
