# make demo         builds an INT4 draft for a tiny AWQ target and verifies it
# make test         the default tests
# make test-slow    those that take more than a few seconds each
# make lint         style, types, layers, lengths
# make test-engines the drafts through vLLM's and SGLang's own loaders (no GPU needed; first time 5 minutes, 5.9 GB)
# make engines      the environments that test-engines needs
# make fuzz         the long run of the hostile-input tests: 33 times the cases of make test, a quarter of an hour
# make bench        the benchmarks
# make docs         the documentation as a site, in out/site; a dead link is an error (Python 3.11.5 or newer)
# make clean        removes what make made

PYTHON ?= python3
VENV ?= .venv
ENGINE_VENV ?= .venv-vllm
SGLANG_VENV ?= .venv-sglang
# pip's arguments for torch. A CPU build is enough; PyPI's torch for Linux is a CUDA build of gigabytes, so PyTorch's
# index of CPU builds is asked first. Where it is out of reach pip's own index is, if that too has a CPU build (.ci/torch).
# To take the CUDA build knowingly: make TORCH=torch==2.13.0
TORCH ?= torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
READY := $(VENV)/.mtpforge
CODE := mtpforge tests .ci $(wildcard benchmarks)

.PHONY: help setup demo test test-slow lint fuzz bench docs engines test-engines clean
help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(READY)
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mtpforge needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "setting up $(VENV): a few minutes, 1.7 GB"
	$(PYTHON) -m venv $(VENV)
	.ci/torch $(BIN)/python $(TORCH)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/mtpforge demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not engine and not gpu and not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/lengths.py $(CODE)

fuzz: $(READY)
	MTPFORGE_LONG=1 $(BIN)/python -m pytest -n 2 tests/fuzz

bench: $(READY)
	$(BIN)/python benchmarks/build.py

docs: $(READY)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build

engines:
	PYTHON=$(PYTHON) TORCH="$(TORCH)" .ci/vllm-env $(ENGINE_VENV)
	PYTHON=$(PYTHON) TORCH="$(TORCH)" .ci/sglang-env $(SGLANG_VENV)

test-engines: $(READY) engines
	MTPFORGE_TEST_ENGINE_PYTHON=$(abspath $(ENGINE_VENV))/bin/python \
	MTPFORGE_TEST_SGLANG_PYTHON=$(abspath $(SGLANG_VENV))/bin/python $(BIN)/python -m pytest -n 2 --dist loadgroup -m engine

clean:
	rm -rf $(VENV) $(ENGINE_VENV) $(SGLANG_VENV) build dist out/site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
