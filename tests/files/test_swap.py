"""A folder is replaced as a whole, by its own command alone; killed anywhere, nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amal_hf._files import check_output, replaced_folder, swap
from amal_hf._files.lock import scratch_folder

KILLED = Path(__file__).parent / "scripts" / "killed_swap.py"


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below a folder, with its bytes."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


def write(target: Path, said: str = "new", command: str = "teach") -> None:
    with replaced_folder(target, command) as scratch:
        (scratch / "made" / "train").mkdir(parents=True)
        (scratch / "made" / "train" / "rows.txt").write_text(said)
        (scratch / "made" / "note.json").write_text(said * 2)
        (scratch / "work.tmp").write_text("work")


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(swap, "exchanged", lambda a, b: False)
    return request.param


def test_its_own_folder_is_replaced_and_nothing_is_left_over(tmp_path, way):
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "train" / "rows.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_new_empty_and_missing_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    write(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "note.json").is_file() and (tmp_path / "empty" / "note.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]


FOREIGN = {
    "a file": lambda out: (out / "thesis.docx").write_text("mine"),
    "a hidden file": lambda out: (out / ".env").write_text("mine"),
    "a file in its folder": lambda out: (out / "train" / "more.txt").write_text("mine"),
    "an empty folder": lambda out: (out / "plans").mkdir(),
    "a changed file of the same size": lambda out: (out / "note.json").write_text("mymine"),
    "a link": lambda out: (out / "link").symlink_to(out.parent / "elsewhere"),
    "a link in a file's place": lambda out: (
        (out / "note.json").rename(out.parent / "moved"), (out / "note.json").symlink_to(out.parent / "moved"),
    ),
    "no marker": lambda out: (out / ".amal_hf.json").unlink(),
    "a damaged marker": lambda out: (out / ".amal_hf.json").write_text("{"),
    "a marker that lists nothing": lambda out: (out / ".amal_hf.json").write_text("[]"),
    "a folder of the same marker": lambda out: (
        (out / "sub").mkdir(), (out / "sub" / ".amal_hf.json").write_text("mine"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("linked", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_what_the_command_did_not_write_is_never_replaced(tmp_path, change, linked):
    write(tmp_path / "out", "old")
    change(tmp_path / "out")
    target = tmp_path / "out"
    if linked:
        target = tmp_path / "link"
        target.symlink_to(tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(OSError, match=r"`output_dir`: expected a new or empty folder.*found in .*Nothing was touched"):
        write(target)
    assert content(tmp_path) == before


def test_nor_what_another_command_wrote(tmp_path):
    write(tmp_path / "out", command="label")
    before = content(tmp_path)
    with pytest.raises(OSError, match=r"`amal-hf label` wrote there"):
        write(tmp_path / "out", command="teach")
    assert content(tmp_path) == before


def test_nor_a_file_a_dangling_link_s_target_apart(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"`output_dir`: .*file"):
        write(tmp_path / "file")
    with pytest.raises(OSError, match="`output_dir`"):
        write(tmp_path / "file" / "in it")
    assert content(tmp_path) == {"file": b"mine"}
    (tmp_path / "link").symlink_to(tmp_path / "far")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "note.json").is_file()


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, way):
    write(tmp_path / "far", "old")
    (tmp_path / "link").symlink_to("far")
    write(tmp_path / "link", "new")
    assert os.readlink(tmp_path / "link") == "far"
    assert (tmp_path / "far" / "note.json").read_text() == "newnew"


def test_what_comes_while_the_command_works_stays(tmp_path, way):
    write(tmp_path / "out", "old")
    before = content(tmp_path)
    with (
        pytest.raises(OSError, match=r"found in .*late\.txt"),
        replaced_folder(tmp_path / "out", "teach") as scratch,
    ):
        (scratch / "made").mkdir()
        (scratch / "made" / "x").write_text("new")
        (tmp_path / "out" / "late.txt").write_text("mine")
    assert content(tmp_path) == {**before, "out/late.txt": b"mine"}


def test_an_error_leaves_everything_as_it_was(tmp_path):
    write(tmp_path / "out", "old")
    before = content(tmp_path)
    for target in (tmp_path / "out", tmp_path / "x" / "y"):
        with pytest.raises(ZeroDivisionError), replaced_folder(target, "teach") as scratch:
            (scratch / "made").mkdir()
            1 / 0  # noqa: B018
    assert content(tmp_path) == before


@pytest.mark.parametrize("failing", range(1, 4))
def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, failing, monkeypatch):
    write(tmp_path / "out", "old")
    before, calls, rename = content(tmp_path), [], os.rename

    def fails(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(swap, "exchanged", lambda a, b: False)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match=r"`output_dir`: expected room for .*No space left on device. What was there"):
        write(tmp_path / "out")
    monkeypatch.undo()
    assert len(calls) >= failing and content(tmp_path) == before


@pytest.mark.parametrize("there", ["ours", "nothing", "foreign"])
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_killed_at_every_change_of_the_disk(tmp_path, how, there):
    """The process ends at its n-th rename, deletion or new folder, for every n; then the command runs again."""
    kills = 0
    for n in range(1, 60):
        place = tmp_path / str(n)
        place.mkdir()
        (place / "sibling").mkdir()
        (place / "sibling" / "work.py").write_text("mine")
        if there != "nothing":
            write(place / "out", "old")
        if there == "foreign":
            (place / "out" / "mine.txt").write_text("mine")
        before = content(place)
        killed = _killed(place / "out", n, how)
        after = content(place)
        assert after["sibling/work.py"] == b"mine"
        if there == "foreign":
            assert {k: after.get(k) for k in before} == before
        if there == "ours" and how == "exchange":  # the one or the other is there, whole
            assert after["out/note.json"] in (b"oldold", b"newnew")
            assert after["out/train/rows.txt"] * 2 == after["out/note.json"]
        if there == "ours":  # and where it is not, it can be found
            whole = [k for k, v in after.items() if k.endswith("note.json") and v in (b"oldold", b"newnew")]
            assert whole
        if not killed:
            break
        kills += 1
        if there == "foreign":
            with pytest.raises(OSError, match=r"mine\.txt"):
                write(place / "out", "next")
            assert content(place) == before
        else:
            write(place / "out", "next")
            assert content(place / "out").keys() == {"train", "train/rows.txt", "note.json", ".amal_hf.json"}
            assert sorted(p.name for p in place.iterdir()) == ["out", "sibling"]
            assert (place / "out" / "note.json").read_text() == "nextnext"
    assert not killed and kills >= (5 if there != "foreign" else 2)


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_after_a_kill_the_old_folder_comes_back_where_the_next_run_fails(tmp_path, how):
    found = set()
    for n in range(1, 40):
        write(tmp_path / str(n) / "out", "old")
        killed = _killed(tmp_path / str(n) / "out", n, how)
        with (
            pytest.raises(ZeroDivisionError),
            replaced_folder(tmp_path / str(n) / "out", "teach"),
        ):
            1 / 0  # noqa: B018
        found.add((tmp_path / str(n) / "out" / "note.json").read_text())
        assert [p.name for p in (tmp_path / str(n)).iterdir()] == ["out"]
        if not killed:
            break
    assert not killed and found == {"oldold", "newnew"}


def _killed(target: Path, n: int, how: str) -> bool:
    child = os.fork()
    if child == 0:
        sys.path.insert(0, str(KILLED.parent))
        import killed_swap

        killed_swap.run(target, n, how, write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9, 1), status
    return status == 9


# ---- one process at a time ----


def test_two_at_once(tmp_path):
    with (
        replaced_folder(tmp_path / "out", "teach") as scratch,
        pytest.raises(OSError, match="`output_dir`: expected a folder that nobody else is writing"),
    ):
        (scratch / "made").mkdir()
        write(tmp_path / "out")
    write(tmp_path / "out")


def test_another_process_is_named(tmp_path):
    code = (
        "import sys,time\nfrom amal_hf._files import replaced_folder\n"
        "with replaced_folder(sys.argv[1], 'teach') as scratch:\n    print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OSError, match=rf"found that process {other.pid} \(`amal-hf teach`\) writes there now"):
            write(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == [".out.amal_hf"]
    finally:
        other.kill()
        other.wait()
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_worker_that_outlives_its_parent_holds_nothing(tmp_path):
    code = (
        "import os,sys,time\nfrom amal_hf._files import replaced_folder\n"
        "with replaced_folder(sys.argv[1], 'teach') as scratch:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(60)\n"
        "    print(child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    child = int(other.stdout.readline())
    try:
        other.wait()
        os.kill(child, 0)  # it lives
        write(tmp_path / "out")
    finally:
        os.kill(child, 9)


@pytest.mark.parametrize("other", ["a file", "a folder", "a folder with a lock of another kind", "a link"])
def test_something_else_in_the_scratch_folder_s_place(tmp_path, other):
    scratch = tmp_path / ".out.amal_hf"
    if other == "a file":
        scratch.write_text("mine")
    elif other == "a link":
        (tmp_path / "mine").mkdir()
        scratch.symlink_to(tmp_path / "mine")
    else:
        scratch.mkdir()
        (scratch / "mine.txt").write_text("mine")
        if "lock" in other:
            (scratch / "lock").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(OSError, match=r"`output_dir`: expected .* to be free"):
        write(tmp_path / "out")
    assert content(tmp_path) == before


def test_the_lock_is_given_back_and_taken_again(tmp_path):
    for _ in range(3):
        with scratch_folder(tmp_path / "s", "output_dir", "teach"):
            assert (tmp_path / "s" / "lock").is_file()
        assert not (tmp_path / "s").exists()


# ---- apart from what is read ----


@pytest.fixture
def place(tmp_path):
    for name in ("p/data", "tea", "model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file.txt").write_text(name)
    (tmp_path / "p" / "lfs.py").write_text("code")
    return tmp_path


INPUTS = {"DATA": "p/data", "TEACHER": ["tea"], "LFS.py": "p/lfs.py"}
APART = {
    "the data": "p/data", "above the data": "p", "everything": ".", "the teacher": "tea",
    "through a parent": "tea/../p", "the functions": "p/lfs.py", "a link to the data": "link", "above everything": "..",
}  # fmt: skip


@pytest.mark.parametrize("owner", [True, False])
@pytest.mark.parametrize("output", APART.values(), ids=APART)
def test_never_over_what_is_read(place, output, owner, monkeypatch):
    monkeypatch.chdir(place)
    (place / "link").symlink_to("p/data")
    before = content(place)
    with pytest.raises(OSError, match=r"`output_dir`: expected a folder apart from `(DATA|TEACHER|LFS.py)`"):
        check_output(output, "teach", INPUTS, owner=owner)
    assert content(place) == before


def test_an_input_given_by_a_link_and_links_within_it(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "here").mkdir()
    (place / "here" / "data").symlink_to(place / "p" / "data")
    with pytest.raises(OSError, match="that it holds 'here/data'"):
        check_output("here", "teach", {"DATA": "here/data"}, owner=False)
    (place / "linked").mkdir()
    (place / "linked" / "train.txt").symlink_to(place / "p" / "data" / "file.txt")
    with pytest.raises(OSError, match="apart from `DATA`"):
        check_output("p/data", "teach", {"DATA": "linked"}, owner=False)


def test_within_the_data_nothing_is_replaced(place):
    with pytest.raises(OSError, match="that it lies in"):
        (place / "p" / "data" / "out").mkdir()
        (place / "p" / "data" / "out" / "x").write_text("x")
        check_output(place / "p" / "data" / "out", "teach", {"DATA": place / "p" / "data"}, owner=False)


def test_patterns_and_names_of_the_hub(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(OSError, match="apart from `TEACHER`"):
        check_output("tea", "teach", {"TEACHER": ["te*"]})
    check_output("new", "teach", {"DATA": "glue/sst2", "TEACHER": ["org/model", ""], "model": ""})
    check_output("pp", "teach", {"DATA": "p/data"})  # no prefix of a name
