"""Every command, and every folder that it must not write over: what was there before is there after, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_swap import content
from tiny import make_world

import amal_hf
from amal_hf.cli import main


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("world") / "home"
    make_world(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "proj/config.yaml", "--output_dir", "run"]) == 0
    return place


@pytest.fixture
def home(world, tmp_path, monkeypatch) -> Path:
    shutil.copytree(world, tmp_path / "home", symlinks=True)
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


COMMANDS = {
    "teach": ["teach", "tea", "proj/data", "--use_cpu", "--output_dir"],
    "label": ["label", "proj/lfs.py", "proj/data", "--num_proc", "1", "--label_models", "majority", "--output_dir"],
    "denoise": ["denoise", "run"],
    "train": ["train", "proj/config.yaml", "--output_dir"],
    "train with a teacher": ["train", "proj/config.yaml", "--teacher", "tea", "--output_dir"],
    "demo": ["demo", "--model", "model", "--output_dir"],
}
TAKEN = [
    ".", "..", "proj", "proj/", "proj/data", "tea", "model", "run/rows", "sibling", "mine", "link_mine", "link_data",
    "link_all", "link_all/mine", "mine/thesis.docx", "mine/thesis.docx/new", "proj/lfs.py", "proj/config.yaml",
    "empty/link_tea", "sibling/../tea",
]  # fmt: skip


@pytest.mark.parametrize("output", TAKEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_refused_and_nothing_is_touched(home, command, output, capsys):
    before = content(home.parent)
    assert main([*COMMANDS[command], output]) == 2
    assert content(home.parent) == before
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"amal-hf {command.split()[0]}: `")
    assert "expected" in said and "found" in said


@pytest.mark.parametrize("command", ["teach", "label", "denoise", "demo"])
def test_a_run_is_never_replaced_by_another_command(home, command, capsys):
    before = content(home.parent)
    for output in ("run", "link_run", "run/weights"):
        assert main([*COMMANDS[command], output]) == 2
        assert content(home.parent) == before


OUTPUTS = ["new", "empty/new", "deep/er/new", "proj/new", "run/../new"]
TWICE = [(command, output) for command in ("teach", "label", "denoise", "train") for output in OUTPUTS]


@pytest.mark.parametrize(
    ("command", "output"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] == "train" and each[1] != "new")) for each in TWICE],
)
def test_written_twice_beside_everything(home, command, output):
    before = content(home)
    for _ in range(2):
        assert main([*COMMANDS[command], output]) == 0
        after = content(home)
        assert {name: after.get(name) for name in before} == before
        assert not [name for name in after if name.endswith(("/lock", ".amal_hf"))]
    assert any(name not in before for name in after)


@pytest.mark.parametrize("command", ["teach", "label", "denoise", "train"])
def test_what_somebody_added_to_it_stays(home, command, capsys):
    assert main([*COMMANDS[command], "new"]) == 0
    (home / "new" / "thesis.docx").write_text("mine")
    before = content(home.parent)
    assert main([*COMMANDS[command], "new"]) == 2
    assert content(home.parent) == before
    assert "'thesis.docx'" in capsys.readouterr().err


def test_denoise_in_the_run_and_a_report_of_somebody_s(home, capsys):
    before = content(home)
    for _ in range(2):
        assert main(["denoise", "run"]) == 0
    assert main(["report", "run"]) == 0
    after = content(home)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"run/report.html", "run/.amal_hf.json"}
    assert main(["train", "proj/config.yaml", "--output_dir", "run"]) == 0  # a corpus beside it is no hindrance
    (home / "run" / "report.html").write_text("mine")
    before = content(home)
    for argv in (["report", "run"], ["train", "proj/config.yaml", "--output_dir", "run"]):
        assert main(argv) == 2
        assert content(home) == before


def test_the_fine_tuned_teacher_s_folder(home, capsys):
    model = home / "model"
    encoder = home / "encoder"
    shutil.copytree(model, encoder)
    config = encoder / "config.json"
    config.write_text(config.read_text().replace("BertForSequenceClassification", "BertModel"))
    (home / "new" / "teacher").mkdir(parents=True)
    (home / "new" / "teacher" / "thesis.docx").write_text("mine")
    before = content(home)
    argv = ["train", "proj/config.yaml", "--teacher", "encoder", "--teacher_epochs", "0.1", "--output_dir"]
    assert main([*argv, "new"]) == 2
    assert content(home) == before
    for _ in range(2):
        assert main([*argv, "fresh"]) == 0
    (home / "fresh" / "teacher" / "notes.md").write_text("mine")
    before = content(home)
    assert main([*argv, "fresh"]) == 2
    assert content(home) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["teach", "label", "denoise"])
def test_killed_anywhere(world, command, tmp_path):
    """A command that writes its folder a second time, killed at its n-th change of the disk."""
    told = in_children(world, tmp_path, "kill", COMMANDS[command], range(1, 41, 3))
    assert sum(each["code"] == 9 for each in told) >= 5
    for each in told:
        assert each["lost"] == [] and each["changed"] == [] and each["left over"] == [] and each["again"] == 0


@pytest.mark.slow
def test_train_on_a_full_disk(world, tmp_path):
    """Files end at `size` bytes: a run is there, whole, or not at all."""
    sizes = [100, 1000, 2000, 4000, 6000, 10000, 15000, 20000, 30000, 10**7]
    told = in_children(world, tmp_path, "room", COMMANDS["train"], sizes)
    assert [each["code"] for each in told if each["at"] in (100, 1000, 2000, 10**7)] == [2, 2, 2, 0]
    for each in told:
        assert each["lost"] == [] and each["changed"] == []
        whole = {*os.listdir(world / "run")} - {"report.html"} <= {*each["there"]}  # the page is made of a whole run
        assert whole or not each["there"], each
        assert whole or each["code"], each
        if each["code"]:
            assert each["code"] == 2 and "`: expected" in each["said"] and "oo large" in each["said"], each["said"]


def in_children(world: Path, place: Path, what: str, argv: list[str], at: Iterable[int]) -> list[dict[str, Any]]:
    """A process that forks before any thread is there; what it found, by kill or size."""
    script = Path(__file__).parent / "scripts" / "commands.py"
    given = json.dumps({"world": str(world), "place": str(place), "what": what, "argv": argv, "at": [*at]})
    environment = {**os.environ, "HF_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(amal_hf.__file__).parents[1], Path(__file__).parent]))
    done = subprocess.run(
        [sys.executable, script, given], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
