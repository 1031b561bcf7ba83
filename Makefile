# make train    a small GPT on Tiny Shakespeare, from an empty machine to a sample, in minutes
# make test     the tests (make test-all: the slow ones as well)
# make install  only the set-up: .venv with the pinned dependencies and this package
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra words for train.py: make train ARGS="model=bigram"
ARGS ?=
# Tests run in so many processes, a file of them in one.
WORKERS ?= 2

.PHONY: train test test-all lint install clean

train: $(VENV)/.installed
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

install: $(VENV)/.installed

# Made again when the dependencies change, and only then.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chargpt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis src/*.egg-info
