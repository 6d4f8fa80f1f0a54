"""`python -m amal_hf` is `amal-hf`."""

import sys

from amal_hf.cli import main

sys.exit(main())
