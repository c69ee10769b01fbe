# Two commands do all: `make distill` runs the main job, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: distill test check bench-gpu tune-gpu stop clean

distill: $(VENV)/.installed
	@$(BIN)/rcm distill

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/dvc_deps.py --check
	$(BIN)/python scripts/check_links.py
	$(BIN)/python -m pip check

bench-gpu: $(VENV)/.installed-dev
	@$(BIN)/python kernels/bench/gpu.py

tune-gpu: $(VENV)/.installed-dev
	@$(BIN)/python kernels/bench/tune.py

stop: $(VENV)/.installed
	@$(BIN)/rcm stop

clean:
	rm -rf runs .rcm .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@echo "setting up $(VENV) (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e ".[dev]"
	@touch $@
