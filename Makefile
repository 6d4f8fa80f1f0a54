# `make demo` and `make test` do everything on a fresh machine: own .venv, install, run.
PYTHON ?= python3
# the torch to install first, e.g. TORCH=torch==2.13.0 for a CPU build where there is one
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed

.PHONY: demo test slow lint types docs notebooks wheel clean

$(DONE): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $(DONE)

demo: $(DONE)
	$(BIN)/amal-hf demo --output_dir runs/demo

test: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4

slow: $(DONE)
	$(BIN)/python -m pip install --quiet --editable ".[slow]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n logical --maxprocesses 4 --dist loadfile

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DONE)
	$(BIN)/mypy

docs: $(DONE)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --strict

notebooks: $(DONE)
	$(BIN)/python examples/notebooks/execute.py

wheel: $(DONE)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info runs
