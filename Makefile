# Everything below makes .venv first, once.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

.PHONY: install demo test test-long lint lint-k8s format lock clean

install: $(VENV)/installed

$(VENV)/installed: requirements/torch-cpu.txt requirements/cpu.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Ingot needs Python 3.11; name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing the pinned requirements into $(VENV) (4 GB, some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-deps --require-hashes --retries 1 --requirement requirements/torch-cpu.txt
	@$(PIP) install --no-deps --require-hashes --requirement requirements/cpu.txt --requirement requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	@$(BIN)/python -m ingot.services.demo --end-with-parent

test: install
	@$(BIN)/python -m pytest -m "not long"

test-long: install
	@$(BIN)/python -m pytest -m long

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lint-k8s: install
	@$(BIN)/python k8s/lint.py

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: install
	@$(BIN)/python requirements/lock.py

clean:
	rm -rf .ingot build *.egg-info
