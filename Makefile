# Everything sets itself up: `make demo` and `make test` work in a fresh clone (Python 3.11+, pip).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
JOBS ?= 2

.PHONY: setup demo test check docs bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $(READY)

demo: setup
	$(BIN)/raggd demo

check: setup
	$(BIN)/ruff check src tests examples
	$(BIN)/ruff format --check src tests examples
	$(BIN)/mypy

test: check
	$(BIN)/raggd data fetch
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup

docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]" --constraint constraints.txt
	$(BIN)/mkdocs build --strict --site-dir build/docs

bench: setup
	$(BIN)/raggd bench

clean:
	rm -rf .venv build dist src/*.egg-info
