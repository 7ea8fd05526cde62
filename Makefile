# Everything a person does in this project, by one name each. Needs only make and Python 3.11, 3.12 or 3.13.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Made again when what is to be installed changes: what the demo and the UI need, and all that tests and checks need too.
RUNNABLE := $(VENV)/.runnable
INSTALLED := $(VENV)/.installed

KILLS ?= 1000
# One more than cores: half of a test's time it waits for processes and browsers.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
PORT ?= 3000
ARGS ?=

.PHONY: help setup demo test check ui bench chaos endurance constraints clean

help: ## Print these targets
	@echo "make <target>:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

setup: $(INSTALLED) ## Make .venv and install the project into it (the other targets do it by themselves)

# Without byte code: what is used is compiled at its first import, and most of what is installed never is.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt

$(RUNNABLE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: name one, e.g. make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	@echo "making $(VENV)…"
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) can't make a virtual environment: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "installing dependencies (a minute or two)…"
	@$(PIP) -e .
	@touch $@
	@echo "installed."

$(INSTALLED): $(RUNNABLE)
	@echo "installing what tests and checks need…"
	@$(PIP) -e '.[dev,postgres,celery]'
	@touch $@

demo: $(RUNNABLE) ## Run the whole pipeline on the sample catalogue against the simulator: no key, no cost
	@$(BIN)/nanobanana demo $(ARGS)

test: $(INSTALLED) ## Run the tests, in parallel (ARGS="-k budget" for some of them)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(INSTALLED) ## Formatting, lint, types and the import order: each must be clean
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff --quiet . | head -n 60; echo "formatting: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-logo

ui: $(RUNNABLE) ## Open Dagster's user interface and daemon (PORT=3000)
	@$(BIN)/nanobanana dev --port $(PORT) $(ARGS)

bench: $(INSTALLED) ## Measure: time, CPU, memory and bytes for each item
	@$(BIN)/python -m nanobanana_pipeline_tests.benchmarks $(ARGS)

chaos: $(INSTALLED) ## Kill runs at KILLS=1000 random points and hold the ledger against the provider's book
	@$(BIN)/python -m nanobanana_pipeline_tests.chaos --kills $(KILLS) $(ARGS)

endurance: $(INSTALLED) ## Work 200,000 items of mixed faults off in one process, and watch its memory (an hour)
	@$(BIN)/python -m nanobanana_pipeline_tests.chaos.endurance $(ARGS)

constraints: ## Resolve the newest allowed versions and write constraints.txt anew
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && echo "resolving (some minutes)…" && \
		$(PYTHON) -m venv "$$fresh" && "$$fresh/bin/python" -m pip install -qq --disable-pip-version-check '.[dev,postgres,celery]' && \
		{ grep '^#' constraints.txt; "$$fresh/bin/python" -m pip freeze --exclude nanobanana-pipeline; } > "$$fresh/constraints.txt" && \
		cp "$$fresh/constraints.txt" constraints.txt && git diff --stat -- constraints.txt

clean: ## Remove what make made: .venv and caches (data/ stays: it holds images that were paid for)
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find nanobanana_pipeline nanobanana_pipeline_tests -name __pycache__ -type d -prune -exec rm -rf {} +
