# `make distill` runs the main job, `make test` the tests. Both install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Compile on all cores; pip would use one. Some packages contain files that are not valid Python 3: errors are ignored.
COMPILE := $(BIN)/python -m compileall -qq -j 0

.PHONY: distill promises test test-all check compare compare-mini compare-scenes compare-memory compare-mixture compare-balance \
	compare-page warm-start bench-gpu tune-gpu stop clean

distill: $(VENV)/.installed
	@$(BIN)/rcm distill

# Takes minutes. Run it after a change that may affect the metrics.
promises: distill
	@$(BIN)/python scripts/acceptance.py runs --no-timing --significant

# Three processes on two cores, because tests of servers and clusters mostly wait. One thread each: several threads on
# one core spend their time waiting for each other.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 10

test: $(VENV)/.installed-dev
	@echo "running the tests, without those marked slow (make test-all runs them too)"
	@$(TESTS) -m "not slow"

test-all: $(VENV)/.installed-dev
	@echo "running all tests"
	@$(TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_links.py
	$(BIN)/python -m pip check

# Takes hours on two cores, and resumes after an interruption. docs/results.md is written from the finished runs.
# A run that could not be trained is listed there with the reason, and the other runs continue.
compare: $(VENV)/.installed
	@$(MAKE) --keep-going compare-mini compare-scenes compare-mixture compare-balance warm-start compare-memory

compare-mini compare-scenes: compare-%: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison --teacher $*; status=$$?; $(BIN)/python -m experiments.comparison.page; exit $$status

warm-start: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison.studies.warm_start
	@$(BIN)/python -m experiments.comparison.page

compare-memory: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison.studies.memory
	@$(BIN)/python -m experiments.comparison.page

compare-mixture: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison.studies.mixture
	@$(BIN)/python -m experiments.comparison.page

compare-balance: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison.studies.balance
	@$(BIN)/python -m experiments.comparison.page

compare-page: $(VENV)/.installed
	@$(BIN)/python -m experiments.comparison.page

bench-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -m experiments.kernels.gpu

tune-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -m experiments.kernels.tune

stop: $(VENV)/.installed
	@$(BIN)/rcm stop

clean:
	rm -rf runs .rcm .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Upgrade pip first: the version bundled with Python may take three times as long.
$(BIN)/python:
	@echo "setting up $(VENV) (once, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@$(PIP) -e .
	@$(COMPILE) $(VENV)/lib || true
	@touch $@

# Includes the users' requirements, so that pip resolves once instead of twice.
$(VENV)/.installed-dev: $(BIN)/python pyproject.toml constraints.txt
	@$(PIP) -e ".[dev]"
	@$(PIP) --no-deps --upgrade --target $(VENV)/eightbit torchao
	@$(COMPILE) $(VENV)/lib $(VENV)/eightbit || true
	@touch $(VENV)/.installed $@
