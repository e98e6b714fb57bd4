# make demo: the whole path on simulated patients.   make help: all targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.installed
TESTS  := $(VENV)/.installed-for-tests

.PHONY: help setup demo check format test test-slow bench results docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv and install everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or later is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python && $(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install -qq --constraint constraints.txt --editable '.[train,release,serve,dev]'
	@touch $@

$(TESTS): $(STAMP)
	@echo "installing what the tests need besides (Spark, PostgreSQL's driver, MEDS samples)"
	@$(PIP) install -qq --constraint constraints.txt --editable '.[train,release,serve,postgres,spark,tests,dev]'
	@touch $@

demo: setup  ## the whole path on simulated patients; ARGS="student.epochs=2" changes settings
	@$(BIN)/ckd-ehr demo $(ARGS)

check: setup  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## format, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(TESTS)  ## the tests, without those marked slow
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

test-slow: $(TESTS)  ## the tests marked slow: real weights, real data at full size
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(TESTS)  ## run every benchmark, results into benchmarks/results/
	@mkdir -p benchmarks/results
	@for script in benchmarks/[a-z]*.py; do \
	  name=$$(basename $$script .py); echo "== $$name"; \
	  $(BIN)/python $$script --json benchmarks/results/$$name.json || exit 1; done

results: setup  ## docs/results.md, and what docs/simulator.md measured, from benchmarks/results/
	@$(BIN)/python docs/generate.py --results

docs: setup  ## what is generated in docs/ and README.md
	@$(BIN)/python docs/generate.py

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
