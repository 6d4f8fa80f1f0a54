"""One module for each command of `amal-hf`."""
