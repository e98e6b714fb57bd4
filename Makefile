# make demo: everything from a fresh machine to a report.   make test: the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help setup demo check format test test-slow bench results clean

help:
	@echo "make setup       virtual environment with everything pinned in constraints.txt"
	@echo "make demo        simulated hospital → teacher → student → report (ARGS=student.epochs=2)"
	@echo "make check       format, lint, types"
	@echo "make test        the tests; make test-slow: real weights, real data, minutes"
	@echo "make bench       benchmarks/*.py; make results: their figures into docs/results.md"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

demo: setup
	$(BIN)/ckd-ehr demo $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup
	$(BIN)/pytest -m "not slow" $(ARGS)

test-slow: setup
	$(BIN)/pytest -m slow $(ARGS)

bench: setup
	@mkdir -p benchmarks/results
	@for script in benchmarks/*.py; do \
	  name=$$(basename $$script .py); echo "== $$name"; \
	  $(BIN)/python $$script --json benchmarks/results/$$name.json || exit 1; done

results: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
