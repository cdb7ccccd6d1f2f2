# Needs only python3 (3.11 or newer) and make: everything else goes into .venv.
# No torch is installed before a target needs it; `make demo` does not.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
BASE   := $(VENV)/.installed-base
DEV    := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format models demo-model bench table families node-tests clean distclean

help:  ## list the targets
	@$(PYTHON) -c 'import re; [print(f"  make {name:10}  {text}") for name, text in re.findall(r"^([a-z-]+):.*## (.*)", open("Makefile").read(), re.M)]'

$(BIN)/python:
	@echo "[venv] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tpcore needs Python 3.11 or newer. Choose one with make PYTHON=python3.11.")'
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt backends/native.c backends/heap.c | $(BIN)/python
	@echo "[venv] installing tpcore, onnxruntime and MPI into $(VENV) (340 MB, no torch)"
	@$(PIP) -e .
	@: > $@

$(DEV): $(BASE)
	@echo "[venv] adding the development tools: torch, transformers, pytest, mypy, ruff (takes minutes)"
	@$(PIP) -e '.[dev]'
	@: > $@

venv: $(DEV)  ## make .venv with everything for development

demo: $(BASE)  ## split a small Llama, run it, compare it with the unsplit model
	@$(BIN)/tpcore demo

test: $(DEV) lint  ## lint, types and all tests
	@echo "[test] exporting the models of the tests into .cache (minutes, once)"
	@$(BIN)/python -m tests.prepare
	@$(BIN)/python -m pytest -m "not alone" -n auto --dist loadfile
	@$(BIN)/python -m pytest -m alone

lint: $(DEV)  ## ruff check, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(DEV)  ## apply ruff's fixes and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

models: $(DEV)  ## export the test models into the cache (the tests do it by themselves)
	@$(BIN)/python -m tests.models

demo-model: $(DEV)  ## export tpcore/assets/demo-llama again
	@$(BIN)/python -m tests.export_models demo tpcore/assets/demo-llama

bench: $(DEV)  ## time ours and the peers that are installed, keep the figures (an hour)
	@$(BIN)/python -m bench.run --save
	@$(BIN)/python -m bench.quality --save

table: $(DEV)  ## print models × tp: equal, largest difference, split fraction, collectives
	@$(BIN)/python -m bench.table

families: $(DEV)  ## the same for many model families (exports them first: minutes)
	@$(BIN)/python -m bench.families

node-tests: $(DEV)  ## send ONNX's own node tests through tpcore, split at random as well
	@$(BIN)/python -m bench.node_tests

clean:  ## remove caches, exported test models and build products
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find graph backends tpcore tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv as well
	@rm -rf $(VENV)
