"""The table of docs/robustness.md counts what the fuzzers ask."""

from __future__ import annotations

import re
from pathlib import Path

from fuzz_damages import DAMAGES as FILES
from fuzz_files import EVERY
from fuzz_runs import BOTH, CHECKPOINTS
from fuzz_runs import DAMAGES as FOLDERS
from test_fuzz import CONFIGURATIONS
from test_fuzz_labels import CASES

PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
ASKED = {
    "test_fuzz.py": CONFIGURATIONS,
    "test_fuzz_labels.py": CASES,
    "test_fuzz_files.py": len(FILES) * len(EVERY),
    "test_fuzz_runs.py::test_damaged_run_folders": len(FOLDERS) * len(BOTH),
    "test_fuzz_runs.py::test_damaged_checkpoints": len(CHECKPOINTS),
}


def test_every_outcome_is_in_the_table():
    table = re.findall(r"^\| [^|]*\|(.*)\| `tests/end_to_end/([\w.:]+)` \|$", PAGE.read_text(), re.MULTILINE)
    rows = {name: cells for cells, name in table}
    assert {*rows} == {*ASKED}
    for name, cells in rows.items():
        asked, *ended = (int(cell.replace(",", "")) for cell in cells.split("|")[:6])
        assert asked == sum(ended) == ASKED[name], name
