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

# Draw scenes, and segment in them what expressions of every kind mean.
demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/crossvlt demo --output build/demo/panel.png

# What to run before every commit. CI runs `test-slow` as well.
test: $(INSTALLED) check
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n 2

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
