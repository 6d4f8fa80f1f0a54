"""Pages that are made from the code whenever the site is built: the command line, the API, the tutorials."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the pages say is tested where no site is built
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

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
    from mkdocs.structure.files import File

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
    """Every command with its arguments, as its help prints them."""
    head = (
        "# Command line\n\n"
        "This page is what `--help` prints. Every field of a command is a flag and a key of its YAML file: "
        "`amal-hf train CONFIG.yaml --learning_rate 1e-4`; a flag wins over the file. A user's error is one line on "
        "stderr and exit status 2.\n"
    )
    return "\n".join([head, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    every = "--help-all" if name == "train" else "--help"
    return f"## `amal-hf {name}` {{#{name}}}\n\n```text\n{help_of(name, every).strip()}\n```\n"


def help_of(command: str, flag: str) -> str:
    """What a command prints when it is asked for help."""
    main = importlib.import_module(f"{FACE}.cli").main
    told = io.StringIO()
    quiet = contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), contextlib.suppress(SystemExit)
    with _columns(100), quiet[0], quiet[1], quiet[2]:
        main([command, flag])
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
