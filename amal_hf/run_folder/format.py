"""The version of the run folder's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""docs/run-folder.md; a folder of another version is refused."""


def check_format(run: Mapping[str, Any]) -> None:
    """`run`, the content of `run.json`, is of this version.

    Raises:
        ValueError: it is of another one.
    """
    if (found := run.get("format", FORMAT)) != FORMAT:
        raise ValueError(
            f"`RUN_DIR`: expected a run folder of format {FORMAT}, found format {found!r}. Read it with the version of "
            "amal_hf that wrote it (run.json, `versions`), or train again."
        )
