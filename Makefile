# make setup   builds .venv in this checkout (once)
# make demo    a made-up patient with three visits, compared; the report opens
# make test    the suite
# make check   what CI runs: lint, types, suite
# make bench   the public scoreboard
# make lock    requirements.lock anew, with digests (needs uv)
# make sbom    what is installed, as CycloneDX, in build/ (needs uv)

PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= demo-report
# Tests in two processes, a file in one of them: most keep one core busy, and some build on those above them.
WORKERS ?= -n 2 --dist loadfile

.PHONY: help setup demo test check bench lock sbom clean

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
	$(BIN)/python .ci/audit.py
	$(BIN)/python -m pytest $(WORKERS)

bench: setup
	$(BIN)/medsiam bench

lock:
	uv pip compile pyproject.toml --all-extras -c constraints.txt --generate-hashes --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock" -o requirements.lock

sbom: setup
	mkdir -p build
	uvx --from cyclonedx-bom cyclonedx-py environment .venv --pyproject pyproject.toml \
		--output-reproducible --of JSON -o build/sbom.cdx.json

clean:
	rm -rf .venv build dist $(DEMO_OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
