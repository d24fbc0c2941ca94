# make demo | test | lint | typecheck | docs | results | clean | help
# All but `clean` make what they need in .venv, once: again when pyproject.toml, constraints.txt or .ci/env.sh change.

PYTHON ?= python3
PYTEST_ARGS ?=
export PYTHON

VENV := .venv
RUN := $(VENV)/bin/python -m
PINS := pyproject.toml constraints.txt .ci/env.sh

.DEFAULT_GOAL := help
.PHONY: demo test lint typecheck docs results clean help check-python

## demo: train a small network on gravitating particles four ways, two of them with REMUL
demo: $(VENV)/.demo
	$(VENV)/bin/python examples/nbody_remul.py

# All three run, also after one has failed; pytest comes last, so that its closing line is the last thing to read.
# Two test processes with one thread each: more threads than cores is slower by far.
## test: lint, type check and the whole test suite; PYTEST_ARGS="-k remul" goes to pytest
test: $(VENV)/.test
	@failed=; \
	$(MAKE) --no-print-directory lint || failed="$$failed lint"; \
	$(MAKE) --no-print-directory typecheck || failed="$$failed typecheck"; \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) pytest -n 2 $(PYTEST_ARGS) || failed="$$failed pytest"; \
	[ -z "$$failed" ] || { echo "make test failed in:$$failed"; exit 1; }

## lint: ruff's rules and formatting
lint: $(VENV)/.test
	$(RUN) ruff check .
	$(RUN) ruff format --check .

## typecheck: mypy, strict, on the package
typecheck: $(VENV)/.test
	$(RUN) mypy

## docs: the pages, with warnings as errors, into site/
docs: $(VENV)/.docs
	$(RUN) mkdocs build --strict

## results: the page of results, its tables and pictures, from the JSON lines in docs/results
results: $(VENV)/.demo
	$(VENV)/bin/python examples/benchmarks/results.py
	$(VENV)/bin/python examples/benchmarks/earlier_runs.py --out docs/results

## clean: remove the environment and everything the tools wrote
clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

## help: this list
help:
	@sed -n 's/^## /make /p' Makefile

$(VENV)/.demo $(VENV)/.test $(VENV)/.docs: $(VENV)/.%: $(PINS) | check-python
	@sh .ci/env.sh $*

# An environment made by another Python than the one asked for is refused, not used.
check-python:
ifneq ($(origin PYTHON),file)
	@sh .ci/env.sh check
endif
