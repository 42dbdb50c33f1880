# The few commands a contributor needs. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Touched when the environment matches the two files that decide what is in it.
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --quiet
SPECS := $(wildcard examples/*.nsa examples/train/*.nsa) grammar/prelude.nsa

.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## a spec, its picture, its kernels, held to the reference, and a model that they train
	@$(BIN)/nsa demo

# Three processes: Triton decides once, when it is first imported, whether it interprets or compiles.
test: lint ## lint, then all tests that need no GPU
	@echo "== without kernels"
	@env -u TRITON_INTERPRET $(PYTEST) tests --numprocesses 2 --dist worksteal
	@echo "== kernels under Triton's interpreter"
	@TRITON_INTERPRET=1 $(PYTEST) tests/interpret --numprocesses 2 --dist worksteal
	@echo "== kernels compiled ahead of time for every architecture"
	@env -u TRITON_INTERPRET $(PYTEST) tests/aot --numprocesses 2 --dist worksteal

lint: $(READY) ## ruff, mypy, the layer contracts, the specs' format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/nsa fmt --check $(SPECS)
	@$(BIN)/lint-imports --no-logo

fmt: $(READY) ## format the Python and the example specs
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/nsa fmt $(SPECS)

golden: $(READY) ## rewrite the golden files from what the compiler prints now; then read `git diff`
	@NSA_UPDATE_GOLDEN=1 $(PYTEST) tests --numprocesses 2 --dist worksteal

clean: ## delete the environment and everything that is made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"nsa-dsl needs Python 3.11 or newer; this is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV); the first time takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) setuptools
	@PYTHONWARNINGS=ignore $(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
