"""A run folder: claimed, resumed or refused; its last parts come together or not at all; killed anywhere."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from scripts.killed_swap import kill_at
from test_swap import content

from amal_hf._files import check_own, discard_but, parts_of_run, run_folder, write_own
from amal_hf._files.checkpoints import whole_folder

PARTS = {"config.json": "c", "model.bin": "m" * 4000, "rows/data.arrow": "r" * 4000, "rows/state.json": "s"}


def checkpoint(folder: Path, number: int, said: str = "x") -> None:
    with whole_folder(folder / f"checkpoint-{number}", True, lambda: None) as place:
        place.mkdir(parents=True)
        (place / "optimizer.pt").write_text(said)


def write_parts(place: Path, parts: Mapping[str, str], said: str) -> None:
    for name, text in parts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(said + text)
    (place / "run.json").write_text(json.dumps({"said": said, "parts": list(parts)}))


def run(folder: Path, said: str = "new", steps: tuple[int, ...] = (), resume: object = None, parts=PARTS) -> None:
    """A run as the command makes it: checkpoints, then its parts, then the report."""
    with run_folder(folder, "train", {}, resume):
        for step in steps:
            checkpoint(folder, step, said)
        with parts_of_run(folder, "train", True, lambda: None) as place:
            write_parts(place, parts, said)
        write_own(folder / "report.html", lambda path: path.write_text(said))


def is_whole(folder: Path) -> str | None:
    """Who wrote the run in a folder, all of whose parts must be there; None where there is none."""
    if not (folder / "run.json").is_file():
        return None
    about = json.loads((folder / "run.json").read_text())
    for name in about["parts"]:
        assert (folder / name).read_text() == about["said"] + PARTS[name], name
    return about["said"]


def checkpoints_in(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("checkpoint-*/optimizer.pt")}


def test_a_new_one(tmp_path):
    run(tmp_path / "run", steps=(2, 4))
    assert is_whole(tmp_path / "run") == "new"
    assert sorted(os.listdir(tmp_path / "run")) == [
        ".amal_hf.json", "checkpoint-2", "checkpoint-4", "config.json", "model.bin", "report.html", "rows", "run.json",
    ]  # fmt: skip


def test_one_that_ended_is_run_again_and_nothing_of_it_is_left(tmp_path):
    run(tmp_path / "run", "old", steps=(2, 40))
    run(tmp_path / "run", "new", steps=(3,), parts={"model.bin": PARTS["model.bin"]})
    assert is_whole(tmp_path / "run") == "new"
    assert checkpoints_in(tmp_path / "run") == {"checkpoint-3": "new"}
    assert not (tmp_path / "run" / "rows").exists() and not (tmp_path / "run" / ".amal_hf").exists()
    run(tmp_path / "run", "last")


def test_the_earlier_run_is_there_until_the_new_one_is_whole(tmp_path):
    run(tmp_path / "run", "old", steps=(2,))
    before = content(tmp_path)
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "run", "train", {}):
        assert is_whole(tmp_path / "run") == "old"
        1 / 0  # noqa: B018
    assert content(tmp_path) == before
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "run", "train", {}):
        checkpoint(tmp_path / "run", 7)
        1 / 0  # noqa: B018
    assert is_whole(tmp_path / "run") == "old" and checkpoints_in(tmp_path / "run") == {"checkpoint-7": "x"}
    with pytest.raises(OSError, match="--resume_from_checkpoint true"):
        run(tmp_path / "run")
    run(tmp_path / "run", "end", resume=True)
    assert is_whole(tmp_path / "run") == "end" and checkpoints_in(tmp_path / "run") == {"checkpoint-7": "x"}


@pytest.mark.parametrize("resume", [None, False, "false", "", "other/checkpoint-2"])
def test_a_run_that_did_not_end_is_resumed_or_refused(tmp_path, resume, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), run_folder("run", "train", {}):
        checkpoint(tmp_path / "run", 2)
        1 / 0  # noqa: B018
    before = content(tmp_path)
    with pytest.raises(OSError, match=r"`output_dir`: .*checkpoints of a run that did not end, found 'checkpoint-2'"):
        run(tmp_path / "run", resume=resume)
    assert content(tmp_path) == before
    for right in (True, "true", "run/checkpoint-2"):
        with run_folder("run", "train", {}, right):
            pass
    assert checkpoints_in(tmp_path / "run") == {"checkpoint-2": "x"}


def test_an_error_before_anything_is_written_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "a" / "run", "train", {}):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


FOREIGN = {
    "a file": lambda run: (run / "notes.md").write_text("mine"),
    "a changed part": lambda run: (run / "model.bin").write_text("mine"),
    "a changed report": lambda run: (run / "report.html").write_text("min"),
    "a file among a part's": lambda run: (run / "rows" / "more.arrow").write_text("mine"),
    "a file in a checkpoint": lambda run: (run / "checkpoint-2" / "why.txt").write_text("mine"),
    "a checkpoint of another program": lambda run: (
        (run / "checkpoint-9").mkdir(), (run / "checkpoint-9" / "x").touch(),
    ),
    "an empty folder": lambda run: (run / "plans").mkdir(),
    "a link": lambda run: (run / "data").symlink_to(run.parent),
    "no marker": lambda run: (run / ".amal_hf.json").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_what_the_run_did_not_write_is_refused(tmp_path, change):
    run(tmp_path / "run", "old", steps=(2,))
    change(tmp_path / "run")
    before = content(tmp_path)
    with pytest.raises(OSError, match="`output_dir`: expected"):
        run(tmp_path / "run")
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "train.csv", ".gitignore"])
def test_a_folder_of_somebody_s(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OSError, match=r"`output_dir`: expected a new or empty folder, or one that holds a run of"):
        run(tmp_path)
    assert content(tmp_path) == {name: b"mine"}


def test_another_command_s_run(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(OSError, match="`amal-hf train` wrote there"), run_folder(tmp_path / "run", "demo", {}):
        pass


def test_what_came_while_it_ran_stays_where_it_is(tmp_path):
    with run_folder(tmp_path, "train", {}):
        (tmp_path / "notes.md").write_text("mine")
        with parts_of_run(tmp_path, "train", True, lambda: None) as place:
            write_parts(place, PARTS, "a")
    run(tmp_path, "b")
    assert is_whole(tmp_path) == "b" and (tmp_path / "notes.md").read_text() == "mine"


def test_a_file_in_a_part_s_way_is_not_overwritten_and_the_run_not_lost(tmp_path):
    with (
        pytest.raises(OSError, match=r"found in .*'model.bin'.*The run is whole in '(.*)': move them away"),
        run_folder(tmp_path / "run", "train", {}),
    ):
        checkpoint(tmp_path / "run", 2)
        (tmp_path / "run" / "model.bin").write_text("mine")
        with parts_of_run(tmp_path / "run", "train", True, lambda: None) as place:
            write_parts(place, PARTS, "a")
    assert (tmp_path / "run" / "model.bin").read_text() == "mine"
    with pytest.raises(OSError, match=r"The run is whole in"), run_folder(tmp_path / "run", "train", {}, True):
        pass
    (tmp_path / "run" / "model.bin").rename(tmp_path / "mine")
    with run_folder(tmp_path / "run", "train", {}, True):
        assert is_whole(tmp_path / "run") == "a"
    assert not (tmp_path / "run" / ".amal_hf").exists()


def test_two_runs_in_one_folder(tmp_path):
    with run_folder(tmp_path / "run", "train", {}):
        before = content(tmp_path)
        with (
            pytest.raises(OSError, match="`output_dir`: expected a folder that nobody else is writing"),
            run_folder(tmp_path / "run", "train", {}),
        ):
            pass
        assert content(tmp_path) == before


def test_a_checkpoint_somebody_put_something_into_is_never_deleted(tmp_path):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-1" / "mine.txt").write_text("mine")
    discard_but(tmp_path, 1, None)
    assert (tmp_path / "checkpoint-1" / "mine.txt").read_text() == "mine"
    checkpoint(tmp_path, 1, "again")
    assert (tmp_path / "checkpoint-1.earlier" / "mine.txt").read_text() == "mine"
    assert checkpoints_in(tmp_path)["checkpoint-1"] == "again"


# ---- killed ----


def seen_of(folder: Path) -> dict[str, bytes | str]:
    """What a folder holds but for hidden names at its top."""
    return {name: said for name, said in content(folder).items() if not name.startswith(".")}


def killed(n: int, work) -> bool:
    child = os.fork()
    if child == 0:
        kill_at(n, "two renames")
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize(
    "steps", [pytest.param((), id="without checkpoints"), pytest.param((3,), id="with one", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("there", ["nothing", "a run", "a run with checkpoints"])
def test_killed_at_every_change_of_the_disk(tmp_path, there, steps):
    """Whenever it is killed: a run is there and whole or not there; and the next start ends well."""
    seen, n = set(), 0
    while True:
        n += 1
        folder = tmp_path / str(n) / "run"
        folder.parent.mkdir()
        (folder.parent / "sibling.txt").write_text("mine")
        if there != "nothing":
            run(folder, "old", steps=(2, 30) if "checkpoints" in there else ())
        ended = not killed(n, lambda folder=folder: run(folder, "new", steps=steps))
        found = is_whole(folder)
        seen.add(found)
        assert found in ({"new", None} if there == "nothing" else {"old", "new", None})
        own = {name: said for name, said in checkpoints_in(folder).items() if said == "new"}
        if there != "nothing" and found is None:  # between the first rename and the last: all of it is kept
            texts = {path.name: path.read_text()[:3] for path in (folder / ".amal_hf").rglob("run.json")}
            assert texts
        if ended:
            break
        if own and found != "new":
            waits = (folder / ".amal_hf" / "whole.json").exists()
            if not waits:
                before = seen_of(folder)
                with pytest.raises(OSError, match="--resume_from_checkpoint true"):
                    run(folder, "next")
                assert seen_of(folder) == before
        run(folder, "next", steps=steps, resume=True)
        assert is_whole(folder) == "next"
        assert not (folder / ".amal_hf").exists()
        assert (folder.parent / "sibling.txt").read_text() == "mine"
        assert len(os.listdir(folder.parent)) == 2
    assert n > 20 and seen >= {None, "new"}


@pytest.mark.parametrize("there", ["a run", "a run with checkpoints"])
def test_killed_and_then_failing_before_its_first_checkpoint_the_earlier_run_is_there(tmp_path, there):
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        run(folder, "old", steps=(2, 30) if "checkpoints" in there else ())
        before = {**content(folder)}
        ended = not killed(n, lambda folder=folder: run(folder, "new"))
        with pytest.raises(ZeroDivisionError), run_folder(folder, "train", {}):
            1 / 0  # noqa: B018
        assert is_whole(folder) in ("old", "new")
        if is_whole(folder) == "old":
            after = content(folder)
            assert {k: v for k, v in after.items() if k != ".amal_hf.json"} == {
                k: v for k, v in before.items() if k != ".amal_hf.json"
            }
        if ended:
            break
    assert n > 20


# ---- no room ----


@pytest.mark.parametrize("there", ["nothing", "a run", "a checkpoint"])
@pytest.mark.parametrize("size", [0, 1, 10, 100, 1000, 2000, 3000, 4000, 4002, 5000])
def test_no_room_for_a_part(tmp_path, size, there):
    """Files end at `size` bytes ; the longest part has 4003."""
    import resource
    import signal

    folder = tmp_path / "run"
    if there == "a run":
        run(folder, "old", steps=(2,))
    elif there == "a checkpoint":
        with pytest.raises(ZeroDivisionError), run_folder(folder, "train", {}):
            checkpoint(folder, 2)
            1 / 0  # noqa: B018
    before = content(tmp_path)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    error = None
    try:
        with run_folder(folder, "train", {}, there == "a checkpoint"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with parts_of_run(folder, "train", True, lambda: None) as place:
                write_parts(place, PARTS, "new")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    except OSError as found:
        error = found
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    if size >= 4003:
        assert error is None and is_whole(folder) == "new"
        return
    assert str(error).startswith("`output_dir`: expected room for") and "File too large" in str(error)
    assert "\n" not in str(error)
    after = content(tmp_path)
    for both in (before, after):  # but for whether a resumed run is marked as begun
        both.pop("run/.amal_hf.json", None)
    assert after == before


@pytest.mark.parametrize("there", ["nothing", "a run"])
def test_no_room_at_any_write(tmp_path, there, monkeypatch):
    """The n-th file that is opened for writing finds the disk full."""
    import io

    ended, n = False, 0
    while not ended:
        n += 1
        folder = tmp_path / str(n)
        if there == "a run":
            run(folder, "old", steps=(2,))
        before, opened, real = content(tmp_path), [], io.open

        def full(file, mode="r", *args, opened=opened, real=real, n=n, **kwargs):
            if "w" in mode:
                opened.append(file)
                if len(opened) == n:
                    raise OSError(errno.ENOSPC, "No space left on device", str(file))
            return real(file, mode, *args, **kwargs)

        monkeypatch.setattr(io, "open", full)
        try:
            run(folder, "new")
            ended = True
        except OSError as error:
            assert "No space left on device" in str(error) and str(error).startswith("`"), str(error)
        monkeypatch.undo()
        if len(opened) < n:
            break
        after, whole = content(tmp_path), is_whole(folder)
        assert whole in (None, "old", "new")
        if whole != "new":  # else it was the report, which is made of a run that is whole
            assert after == before
    assert n >= 10


# ---- the report ----


def test_a_report_of_somebody_s_is_not_overwritten(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(OSError, match=r"`RUN_DIR`: expected no 'report.html'"):
        write_own(page, lambda path: path.write_text("ours"))
    with pytest.raises(OSError, match="`RUN_DIR`"):
        check_own(page)
    assert content(tmp_path) == {"report.html": b"mine"}


def test_a_report_is_written_anew_until_somebody_changes_it(tmp_path):
    for said in ("a", "b"):
        write_own(tmp_path / "report.html", lambda path, said=said: path.write_text(said))
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(OSError, match=r"Nothing was touched"):
        write_own(tmp_path / "report.html", lambda path: path.write_text("c"))
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_report_killed_at_every_change_can_be_written_again(tmp_path):
    n, ended = 0, False
    while not ended:
        n += 1
        page = tmp_path / str(n) / "report.html"
        page.parent.mkdir()
        write_own(page, lambda path: path.write_text("old"))
        ended = not killed(n, lambda page=page: write_own(page, lambda path: path.write_text("new")))
        assert page.read_text() in ("old", "new")
        write_own(page, lambda path: path.write_text("next"))
        assert page.read_text() == "next"
    assert n > 4
