"""What goes wrong on the way: killed, no room, no permission, numbers that are none, rows that say nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import planted
import pytest
import torch
from datasets import Dataset
from planted import identical, parameters, table_of
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

import amal_hf
from amal_hf import CrossEntropy
from amal_hf.clean_rows import lookahead_for
from amal_hf.data.overlap import guard_splits, overlap
from amal_hf.report import write_report

SCRIPTS = Path(__file__).parent / "scripts"


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.what()


# ---- nothing lost ----


@pytest.mark.slow
def test_killed_at_fifty_random_moments(tmp_path):
    """SIGKILL, many while a checkpoint is written: every restart finds whole checkpoints, and the end is the same."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPTS / "killed.py", tmp_path, "50", "0"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == 50 and told["while saving"] >= 10
    assert told["damaged"] == [] and told["left over"] == []
    assert told["resumed"][-1] > 0 and (told["finished"] or told["resumed"] == sorted(told["resumed"]))
    assert told["same end"]


@pytest.mark.parametrize("room", [30_000, 400_000], ids=["the model", "the optimizer"])
def test_no_room_for_a_checkpoint(room, build):
    """The disk is full (files end at `room` bytes) when the second checkpoint is written."""

    def made(folder=None):
        settings = {"save_strategy": "steps", "save_steps": 2, "method": "amal-step"}
        return build(settings, folder, model=planted.make_student(hidden=64))

    whole = made()
    whole.train()

    trainer = made()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer.add_callback(At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))))
    try:
        with pytest.raises(
            OSError, match=r"`output_dir`: expected room for 'checkpoint-4'.*resume_from_checkpoint=True"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]

    resumed = made(folder)
    resumed.train(resume_from_checkpoint=True)
    after = parameters(whole) | whole.weigher.mixing.state()
    assert identical(parameters(resumed) | resumed.weigher.mixing.state(), after) == []


def test_a_folder_that_may_not_be_written(build, tmp_path):
    """Said before a row is read; nobody but root may write everywhere, so root becomes nobody for a while."""
    shut = tmp_path / "shut"
    shut.mkdir()
    shut.chmod(0o555)
    tmp_path.chmod(0o755)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(OSError, match=r"`output_dir`: .*may not be written"):
            build(folder=shut / "run")
    finally:
        os.seteuid(user)
    assert list(shut.iterdir()) == []


def test_a_folder_that_may_no_longer_be_written(build):
    """The folder of checkpoints becomes a file while training goes on."""
    trainer = build({"save_strategy": "steps", "save_steps": 2})
    folder = Path(trainer.args.output_dir)

    def vanish():
        folder.rmdir()
        folder.write_text("in the way")

    trainer.add_callback(At(1, vanish))
    with pytest.raises(OSError, match="`output_dir`: expected room for 'checkpoint-2'"):
        trainer.train()


# ---- numbers that are none ----


def gone_wrong(at, make_wrong):
    """A loss that is fine until batch `at`."""
    calls = iter(range(1000))

    def margin(outputs, batch):
        right = -outputs.logits.log_softmax(-1)[:, 0]
        return make_wrong(right) if next(calls) == at else right

    return margin


# on a CPU fp16 has no gradient scaler, which would skip the step
@pytest.mark.parametrize(("number", "fp16"), [(float("nan"), False), (float("inf"), False), (float("nan"), True)])
def test_a_loss_that_is_no_number(number, fp16, build):
    wrong = gone_wrong(2, lambda rows: torch.where(torch.arange(len(rows), device=rows.device) == 3, number, rows))
    trainer = build({"method": "trust", "meta_start": 0, "save_strategy": "steps", "save_steps": 1, "fp16": fp16},
                    losses={"label": CrossEntropy(), "margin": wrong})  # fmt: skip
    if trainer.accelerator.scaler is not None:
        pytest.skip("a gradient scaler is at work")
    seen = {}
    trainer.add_callback(At(2, lambda: seen.update(parameters(trainer))))
    with pytest.raises(FloatingPointError, match=r"`losses`: .*step 3, found (nan|inf) with source\(s\) \['margin'\]"):
        trainer.train()
    assert identical(parameters(trainer), seen) == []
    assert get_last_checkpoint(trainer.args.output_dir).endswith("checkpoint-2")


def test_a_gradient_that_is_no_number(build):
    """A finite loss whose derivative is not: sqrt at zero."""
    wrong = gone_wrong(2, lambda rows: rows + (rows - rows.detach()).abs().sqrt())
    trainer = build({"method": "fixed"}, losses={"label": CrossEntropy(), "margin": wrong})
    before = {k: v.clone() for k, v in parameters(trainer).items()}
    with pytest.raises(FloatingPointError, match="`losses`: expected a finite gradient at step"):
        trainer.train()
    assert all(p.isfinite().all() for p in parameters(trainer).values())
    assert identical(parameters(trainer), before), "nothing was trained before"


def test_a_direction_that_is_no_number_moves_no_weight(build, monkeypatch):
    """The clean rows' gradient overflows at one lookahead: λ stays as it is, and the run goes on."""
    trainer = build({"method": "amal-step"})

    def steered(*given):
        lookahead = lookahead_for(*given)
        look = lookahead.directional_derivatives
        lookahead.directional_derivatives = lambda step: tuple(t * float("nan") for t in look(step))
        return lookahead

    monkeypatch.setattr("amal_hf.trainer.lookahead_for", steered)
    trainer.train()
    assert trainer.weigher.mixing.table.eq(1).all()
    assert all(p.isfinite().all() for p in parameters(trainer).values())


# ---- rows that say nothing ----


def silent(rows: Dataset, column: str, nothing) -> Dataset:
    return rows.remove_columns(column).add_column(column, [nothing] * len(rows))


@pytest.mark.parametrize("method", ["trust", "amal-step", "shared", "alm-kd"])
def test_a_source_that_always_abstains(method, build):
    train = silent(planted.make_rows(16), "weak_labels", [-1, -1, -1])
    with pytest.warns(UserWarning, match="'weak_labels': says nothing about any row"):
        trainer = build({"method": method, "meta_start": 0}, train_dataset=train, losses=planted.make_losses())
    trainer.train()
    table = table_of(trainer)
    assert table[:, 2:].isnan().all() and table[:, :2].isfinite().all()
    assert all(p.isfinite().all() for p in parameters(trainer).values())


@pytest.mark.parametrize("method", ["trust", "amal-step", "shared", "alm-kd", "fixed"])
def test_a_batch_in_which_every_source_abstains(method, build):
    """Its loss is zero; without momentum or decay such a step moves nothing."""
    train = planted.make_rows(24)
    labels = [-100 if i < 8 else label for i, label in enumerate(train["label"])]
    votes = [[-1] * 3 if i < 8 else said for i, said in enumerate(train["weak_labels"])]
    train = train.remove_columns(["label", "weak_labels"]).add_column("label", labels).add_column("weak_labels", votes)
    settings = {"method": method, "meta_start": 0, "optim": "sgd", "train_sampling_strategy": "sequential"}
    trainer = build(settings, train_dataset=train, losses=planted.make_losses("label", "rules"))
    start, after = {k: v.clone() for k, v in parameters(trainer).items()}, {}
    trainer.add_callback(At(1, lambda: after.update(parameters(trainer))))
    trainer.train()
    assert identical(start, after) == []
    assert identical(parameters(trainer), start) and all(p.isfinite().all() for p in parameters(trainer).values())


@pytest.mark.parametrize("method", ["trust", "amal-step", "shared"])
@pytest.mark.parametrize("kept", [1, 4], ids=["one row", "one class"])
def test_clean_rows_of_one_class(method, kept, build):
    clean = planted.make_rows(12, seed=1)
    clean = clean.filter(lambda row: row["label"] == 1).select(range(kept))
    with pytest.warns(UserWarning, match=r"`clean_dataset`: no clean row of class\(es\) \['air', 'land'\]"):
        trainer = build({"method": method, "meta_start": 0}, clean_dataset=clean)
    trainer.train()
    assert table_of(trainer).isfinite().all()
    assert all(p.isfinite().all() for p in parameters(trainer).values())


@pytest.mark.parametrize("kept", [0, 5])
def test_a_collator_that_drops_rows(kept, build, tokenizer):
    """Losses and logits would be those of different rows: refused, naming how many are missing."""

    def collate(features):
        return tokenizer.pad(features[:kept] or [{"input_ids": [], "attention_mask": []}], return_tensors="pt")

    def nothing(features):
        return {k: v[:kept] for k, v in collate(features).items()}

    trainer = build(data_collator=nothing)
    with pytest.raises(ValueError, match=rf"`data_collator`: expected 8 rows.*found {kept}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_all_rows_filtered_out(build):
    with pytest.raises(ValueError, match="`train_dataset`: expected at least one row"):
        build(train_dataset=planted.make_rows(8).filter(lambda row: False))


# ---- nothing let in ----

READS = {"load", "loads", "read_pickle", "unsafe_load", "full_load", "load_all", "unsafe_load_all", "Unpickler"}
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# bytes that this process itself sent to its worker, never a file
OWN_BYTES = {
    ("labeling/engines.py", "dill.loads"),
    ("commands/_yaml.py", "yaml.load"),  # with a Loader that is a SafeLoader
}


def unsafe_reads(source: str) -> list[str]:
    """Calls that may run what they read: pickles, torch.load, np.load and yaml.load without their safe form."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, said = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        owner, _, what = name.rpartition(".")
        unsafe = {
            "torch": what == "load" and said.get("weights_only") != "True",
            "np": what == "load" and said.get("allow_pickle") != "False",
            "numpy": what == "load" and said.get("allow_pickle") != "False",
            "yaml": what in READS,
            "pd": what == "read_pickle",
            **dict.fromkeys(PICKLES, what in READS),
        }
        if unsafe.get(owner) or said.get("trust_remote_code") == "True" or what == "Unpickler":
            found.append(name)
    return found


def test_nothing_is_read_that_could_run():
    house = Path(amal_hf.__file__).parent
    found = {
        (str(path.relative_to(house)), name) for path in house.rglob("*.py") for name in unsafe_reads(path.read_text())
    }
    assert found == OWN_BYTES
    loaders = {alias.name for path in house.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.ImportFrom) and node.module in PICKLES | {"torch", "yaml"}
               for alias in node.names}  # fmt: skip
    assert not loaders & READS, "called by a bare name, the walk would not see it"


@pytest.mark.parametrize(
    "line",
    ["torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "np.load(f, allow_pickle=True)",
     "yaml.load(f)", "pickle.loads(b)", "pd.read_pickle(f)", "joblib.load(f)",
     "AutoModel.from_pretrained(n, trust_remote_code=True)"],
)  # fmt: skip
def test_the_walk_sees_what_could_run(line):
    assert unsafe_reads(line)


def test_the_walk_lets_safe_reads_pass():
    assert not unsafe_reads("torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nyaml.safe_load(f)")


def test_texts_are_shown_and_not_run(build, tmp_path):
    """A row, a class and a source that carry a script, in the page a browser makes of the report."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    evil = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    run = tmp_path / "run"
    table = {"row_id": [0, 1], "text": [evil, f"w1 {evil}"], "label": [0, 1], "majority": [0, 1], "votes": [[0], [1]],
             "teacher": [-1, -1], "student": [1, 0], "student_confidence": [0.9, 0.8],
             "weights": [[0.1, 0.2], [0.3, 0.4]], "mask": [[True, True], [True, True]]}  # fmt: skip
    Dataset.from_dict(table).save_to_disk(run / "rows")
    about = {"name": evil, "classes": [f"air{evil}", "sea"], "sources": [f"label{evil}", f"rules/{evil}"],
             "primary": f"label{evil}", "method": "trust", "config": {}, "data": {"train": 2}, "versions": {},
             "seed": 0, "seconds": 1.0, "meta_share": 0.1,
             "asserts": {f"label{evil}": "label", f"rules/{evil}": "votes/0"}}  # fmt: skip
    (run / "run.json").write_text(json.dumps(about))
    page = write_report(run)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    shown = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert shown, f"chromium showed no page: {done.stderr[-500:]}"
    assert shown[1].strip() != "run"
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", done.stdout), "an attribute of the corpus' text is alive"
    assert "&lt;script&gt;document.title" in done.stdout, "the text is not shown"

    told = tmp_path / "told.html"  # the same words let loose: the browser does run scripts
    told.write_text(f"<title>quiet</title><p>{evil}</p>")
    loose = subprocess.run([chromium, *flags, told.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    assert "<title>run</title>" in loose.stdout


# ---- the leak guard ----


def test_rows_in_two_splits_are_counted_for_every_pair():
    text = lambda *rows: Dataset.from_dict({"text": list(rows)})  # noqa: E731
    splits = {"train": text("one", "two", "three"), "meta": text("One ", "four"), "test": text("two", "FOUR", "five"),
              "selection": {"train": text("three"), "far": text("six")}}  # fmt: skip
    with pytest.warns(UserWarning) as told:
        guard_splits(splits, ["text"], strict=False)
    message = str(told[0].message)
    for found in ("1 of meta's rows also stand in train (0 of them letter by letter)",
                  "1 of test's rows also stand in train (1 of them letter by letter)",
                  "1 of test's rows also stand in meta (0 of them letter by letter)",
                  "1 of selection/train's rows also stand in train (1 of them letter by letter)"):  # fmt: skip
        assert found in message
    with pytest.raises(ValueError, match="`test_dataset`"):
        guard_splits(splits, ["text"], strict=True)


def test_splits_of_tokens_and_of_text_are_compared_by_what_both_have():
    tokens = Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    both = Dataset.from_dict({"input_ids": [[3], [4]], "text": ["a", "b"]})
    assert overlap({"train": tokens, "meta": both}, ["text"]) == {("train", "meta"): (1, 1)}


@pytest.mark.filterwarnings("error")
def test_disjoint_splits_are_no_news():
    guard_splits({"train": planted.make_rows(12), "meta": planted.make_rows(9, seed=1), "eval": None}, ["text"], True)
