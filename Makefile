# make train    install, train a small GPT on Tiny Shakespeare and print a sample, in minutes
# make test     install what tests need, too, and run the fast tests (make test-all: the slow ones, too)
# make lint     check format, style and types
# make install  only create .venv with the pinned dependencies and this package (make install-dev: what tests need, too)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Overrides for train.py: make train ARGS="model=bigram"
ARGS ?=
# Number of test processes. The fast tests of a file run in the same process, because they share trained models.
WORKERS ?= 2

.PHONY: train test test-all lint install install-dev clean

train: $(VENV)/.installed
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not long" -n $(WORKERS) --dist loadfile

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not long" -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest -m "slow or long" -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# .venv is recreated only when the dependencies change. pip compiles all modules to bytecode, which takes longer than
# training needs for the few that it imports: Python compiles these on first use, and keeps the result unless this
# variable is set. Without it, each start takes seconds longer.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chargpt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Select another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis src/*.egg-info
