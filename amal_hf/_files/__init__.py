"""Nothing of a user's is lost: what is written appears whole, and replaces only what its command wrote.

====================  ===================================================================
`whole`               one file, written under another name and renamed; what no room looks like
`owned`               the list of what a command wrote, and what else is in a folder
`places`              where a command may write: apart from what it reads
`lock`                one process at a time
`swap`                a folder takes another's place
`runs`                a run folder: claimed, resumed or refused
`parts`               its last parts, put in place together
`own`                 one file of it, written anew
`checkpoints`         checkpoints, whole or not at all
====================  ===================================================================
"""

from amal_hf._files.checkpoints import discard_but, no_folder_left, save_whole
from amal_hf._files.own import check_own, write_own
from amal_hf._files.owned import changed_since
from amal_hf._files.parts import parts_of_run
from amal_hf._files.places import check_output, check_writable
from amal_hf._files.runs import run_folder
from amal_hf._files.swap import replaced_folder
from amal_hf._files.whole import could_not_write, write_json, write_tensors, write_whole

__all__ = [
    "changed_since", "check_output", "check_own", "check_writable", "could_not_write", "discard_but", "no_folder_left",
    "parts_of_run", "replaced_folder", "run_folder", "save_whole", "write_json", "write_own", "write_tensors",
    "write_whole",
]  # fmt: skip
