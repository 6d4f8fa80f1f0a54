"""The trust report: one HTML file that says what was trusted where.

`write_report(run_dir)` reads a run folder and writes `run_dir/report.html`. The page opens
offline: figures are inline SVG, style is inline CSS, there is no script. It shows every name and
every text of the corpus as text, whatever it holds. `write_trust_table(run_dir)` writes, for runs with
labeling functions, `trust_table.csv` and `trust_rows.jsonl`: which function to mend, and where;
`write_teacher_table(run_dir)`, for runs with teachers, `teacher_table.csv` and `disagreements.jsonl`.

What flows where (N training rows, K sources, C classes, S snapshots of λ):

==================  =====================================================================
`run.json`          `classes` [C], `sources` [K]; `name`, `primary`, `method`, `config`,
                    `data`, `versions`, `seed`, `seconds`, `meta_share`, `asserts`; `clean`,
                    source -> its `votes` on the clean rows, and how many are `right`
`rows/`             a saved `datasets.Dataset`, N rows: `row_id`, `text`, `label`,
                    `weights` [K], `mask` [K]; `majority`, `votes` [M], `teacher`,
                    `student`, `student_confidence`, `true_label`, `probe`; `corrected` [C], the
                    probabilities of the corrected label; `teachers`, `teachers_confidence` [T],
                    the class each teacher names and its probability
`clean/`            optional: the clean rows: `label`, `teachers`, `teachers_confidence` [T]
`history.json`      optional: `step` [S], `epoch` [S]; `mean`, `q10`, `q90`: source -> [S]
`metrics.json`      optional: `selection` and `test` with `accuracy`, `macro_f1`, `ece`;
                    `comparison`, a list of methods with the same numbers
==================  =====================================================================

Classes are indices into `classes`; a negative one means "none". Only the names before each
semicolon are needed: where another part is absent, the page says so in a sentence.

`asserts` says which column holds what a source says: `{"kd": "teachers/0", "rules/a": "votes/0"}`,
or null for a source that names no class, such as an entropy loss. Without an entry, `teacher`
says `teacher`, M sources `rules/...` say `votes` in order, and `label` or `primary` says `label`.
"""

from amal_hf.report.functions import write_trust_table
from amal_hf.report.page import write_report
from amal_hf.report.teachers import write_teacher_table

__all__ = ["write_report", "write_teacher_table", "write_trust_table"]
