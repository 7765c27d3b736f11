# make setup   builds .venv in this checkout (once)
# make demo    a made-up patient with three visits, compared; the report opens
# make test    the suite
# make check   what CI runs: lint, types, suite
# make bench   the public scoreboard

PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= demo-report
# Tests in two processes: most of them keep one core busy.
WORKERS ?= -n 2 --dist worksteal

.PHONY: help setup demo test check bench clean

help:
	@sed -n 's/^# //p' Makefile

setup: .venv/.ready

# The stamp is older than its sources when a dependency changed.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/medsiam demo --out $(DEMO_OUT) --open

test: setup
	$(BIN)/python -m pytest $(WORKERS)

check: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest $(WORKERS)

bench: setup
	$(BIN)/medsiam bench

clean:
	rm -rf .venv build dist $(DEMO_OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
