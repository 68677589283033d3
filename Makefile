# Each target does its own set-up in .venv and is safe to repeat.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check fix clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# Segment the photograph in the repository. No trained weights are shipped yet: the checkpoint is random.
demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/make_random_checkpoint.py build/random-checkpoint
	HF_HUB_OFFLINE=1 $(BIN)/crossvlt segment examples/images/coffee.jpg "the white cup" "the spoon right of the cup" \
		--model build/random-checkpoint --output build/demo
	@echo "The weights are RANDOM: the masks in build/demo show that everything runs, and mean nothing."

# Everything that CI checks.
test: $(INSTALLED) check
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
