# Two commands to start with: `make demo` and `make test`. `make help` lists the rest.
# Works with GNU make 3.81 and later (macOS ships 3.81).

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
# the only place of exact pins; `make test CONSTRAINTS=` installs the newest versions instead
CONSTRAINTS ?= constraints.txt
# passed on to pip, for instance PIP_ARGS="--no-index --find-links wheels/"
PIP_ARGS ?=
WORKERS ?= 2
# `make compatible`: one of them only (WITH=newest, lowest, lm-eval, or notebooks: all of them, as on Colab);
# STORE=--store notes the newest releases as tested, and of `make mutate` the score in book/results/mutation.json
WITH ?=
STORE ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)
# nothing needs the network after installing; two test workers must not each take every core, nor spin while they wait
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE}
PYTEST := $(OFFLINE) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast lint types format book epub notebooks figures compatible mutate bench bench-gpu sabotage calibrate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamp files: a second run installs nothing unless pyproject.toml or the pins changed.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11. Name a newer one: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { echo "Python could not make a virtual environment (Debian and Ubuntu: install python3-venv)." >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	$(PIP) -e ".[test]"
	@touch $(VENV)/.runtime $@

venv: $(VENV)/.made ## make an empty .venv (to put a build of PyTorch of your choice in it first)

demo: $(VENV)/.runtime ## install, run the whole pipeline on this machine, write the report
	$(OFFLINE) $(BIN)/handbook run pocket/pipeline --out runs/demo

test: $(VENV)/.test lint types ## everything that must pass
	$(PYTEST) -n $(WORKERS) tests --ignore=tests/benchmarks --ignore=tests/compatible

test-fast: $(VENV)/.test ## unit, contract and recipe tests (under 5 minutes)
	$(PYTEST) -n $(WORKERS) tests/unit tests/contract tests/recipes

lint: $(VENV)/.test ## ruff: check and format, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## mypy, strict, on the package
	$(BIN)/mypy

format: $(VENV)/.test ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

book: $(VENV)/.test ## build the book into _build/html from the stored notebook outputs
	$(BIN)/python book/tools/build_book.py

epub: $(VENV)/.test ## build the book as one file for e-readers, _build/epub; `make book` then links it
	$(BIN)/python book/tools/build_epub.py

notebooks: $(VENV)/.test ## run every notebook, refresh its stored outputs and stamp them
	$(OFFLINE) $(BIN)/python book/tools/run_notebooks.py refresh

figures: $(VENV)/.test ## refresh book/results, the README's figures and its picture from runs/demo
	$(BIN)/python book/tools/refresh_figures.py runs/demo

compatible: $(VENV)/.test ## the main job and the contract tests with the newest and the oldest libraries; the harness
	$(BIN)/python tests/compatible/run.py $(WITH) $(STORE)

mutate: $(VENV)/.test ## try small wrong changes, list those that no test notices (about an hour; a run that was ended goes on)
	$(BIN)/python tests/mutation/run.py --jobs $(WORKERS) $(STORE)

bench: $(VENV)/.test ## measure speed and memory, end with a table
	$(OFFLINE) $(BIN)/python tests/benchmarks/run.py

bench-gpu: $(VENV)/.test ## measure training on a CUDA GPU (without one: says so)
	$(OFFLINE) $(BIN)/python tests/benchmarks/gpu.py

sabotage: $(VENV)/.test ## break the code on purpose; every claim must fail
	$(OFFLINE) $(BIN)/handbook run pocket/pipeline --out runs/demo
	$(OFFLINE) $(BIN)/python -m handbook_utils.reporting.claims.sabotage runs/demo

calibrate: $(VENV)/.test ## rerun every claim on five fresh seeds, store its margin
	$(OFFLINE) $(BIN)/python -m handbook_utils.reporting.claims.calibrate --notebooks --jobs $(WORKERS)

clean: ## remove what was built; .venv and runs/ stay
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
