"""Pages that are made from the code whenever the site is built: the command line, the API, the tutorials."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed
COMMANDS = ("train", "label", "teach", "denoise", "report", "demo")
FACE = "amal_hf"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds tutorials and API to the navigation."""
    config.nav.insert(2, {"Tutorials": [f"tutorials/{path.stem}.md" for path in notebooks()]})
    config.nav.append({"API": [f"api/{name}.md" for name in facades()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    made = {"cli.md": command_line()}
    made |= {f"api/{name}.md": api(name) for name in facades()}
    made |= {f"tutorials/{path.stem}.md": tutorial(path) for path in notebooks()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


# --- the API ---------------------------------------------------------------------------------------------------------


def facades() -> list[str]:
    """The package and those of its subpackages that say what is public in them (`__all__`)."""
    package = importlib.import_module(FACE)
    found = [f"{FACE}.{each.name}" for each in pkgutil.iter_modules(package.__path__) if each.ispkg]
    return [FACE, *(name for name in sorted(found) if getattr(importlib.import_module(name), "__all__", None))]


def api(name: str) -> str:
    """A page with everything public of a package."""
    listed = "".join(f"        - {each}\n" for each in importlib.import_module(name).__all__)
    return f"# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n      members:\n{listed}"


# --- the tutorials ---------------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """The notebooks, in the order of their names."""
    return sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def tutorial(path: Path) -> str:
    """A notebook as a page: its text, its code, and what it printed when it was last run."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(_text(output)) for output in cell["outputs"]).strip()
        if printed:
            parts.append(f"```text\n{printed}\n```")
    parts.append(f"*This page is `examples/notebooks/{path.name}`: open it with Jupyter and run it.*")
    return "\n\n".join(parts) + "\n"


def _text(output: dict[str, Any]) -> list[str]:
    if output["output_type"] == "stream":
        return output["text"] if output["name"] == "stdout" else []
    return [*output.get("data", {}).get("text/plain", []), "\n"]


# --- the command line ------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments, read from the parser itself."""
    head = (
        "# Command line\n\n"
        "This page is generated from the parser. Every field of a command is a flag and a key of its YAML file: "
        "`amal-hf train CONFIG.yaml --learning_rate 1e-4`; a flag wins over the file. A user's error is one line on "
        "stderr and exit status 2.\n"
    )
    return "\n".join([head, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    title = f"## `amal-hf {name}` {{#{name}}}\n"
    parser = parser_of(name)
    if parser is None:
        return f"{title}\n```text\n{_help([name, '--help']).strip()}\n```\n"
    told = [title, f"{parser.description}\n" if parser.description else "", f"```text\n{_usage(name, parser)}\n```\n"]
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if _shown(each)]
        if actions:
            heading = (group.title or "options").rstrip(":")
            told.append(f"### {heading[0].upper()}{heading[1:]} {{#{name}-{_slug(heading)}}}\n")
            told.append(f"{group.description}\n" if group.description else "")
            told += ["| | default | |\n|---|---|---|", *map(_line, actions), ""]
    return "\n".join(told)


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    """What has no flag, and that there are flags."""
    words = [str(each.metavar or each.dest).upper() for each in parser._actions if not each.option_strings]
    head = parser.prog if parser.prog.startswith("amal-hf") else f"amal-hf {name}"
    return " ".join([head, *words, "[--field value ...]"])


def _line(action: argparse.Action) -> str:
    flags = [each for each in action.option_strings if "-" not in each.lstrip("-")] or action.option_strings
    name = ", ".join(f"`{each}`" for each in flags) or f"`{action.metavar or action.dest}`"
    default = "" if action.default in (None, argparse.SUPPRESS, "", [], {}) else f"`{_plain(action.default)}`"
    choices = f" One of {', '.join(f'`{_plain(each)}`' for each in action.choices)}." if action.choices else ""
    text = " ".join((action.help or "").replace("%%", "%").split())
    cells = [name, default, _escaped(text) + choices]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _escaped(text: str) -> str:
    """Text of a help string, in which Markdown sees no HTML, emphasis or attributes."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*_])", r"\\\1", part).replace("{", "&#123;") for part in parts[::2]]
    return "`".join(parts)


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def parser_of(name: str) -> argparse.ArgumentParser | None:
    """The parser of a command: asked for its help, it is caught at the moment when it would print it."""
    caught: list[argparse.ArgumentParser] = []
    shown = argparse.ArgumentParser.print_help

    def catch(self: argparse.ArgumentParser, file: Any = None) -> None:
        caught.append(self)

    argparse.ArgumentParser.print_help = catch  # type: ignore[method-assign]
    try:
        _help([name, "--help"])
    finally:
        argparse.ArgumentParser.print_help = shown  # type: ignore[method-assign]
    return caught[0] if caught else None


def _help(argv: list[str]) -> str:
    main = importlib.import_module(f"{FACE}.cli").main
    told = io.StringIO()
    quiet = contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), contextlib.suppress(SystemExit)
    with _columns(100), quiet[0], quiet[1], quiet[2]:
        main(argv)
    return told.getvalue()


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


if __name__ == "__main__":
    sys.stdout.write(command_line())
