# make demo   everything on a fresh clone: environment, kernels, a kernel run, an accuracy run, a report
# make test   lint, types and tests
#
# The environment is .venv; PYTHON names the interpreter it is made with (3.11 or newer). torch from PyPI brings CUDA
# on Linux, some gigabytes; for the CPU build name its index: make demo PIP_FLAGS="--extra-index-url ..."

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_FLAGS)
OUT ?= results

.PHONY: demo test lint types pytest test-transformers wheel clean

demo: .venv/installed
	@test -n "$$(command -v $(CXX))" || { \
	  echo "error: $(CXX) not found; the kernels are compiled on this machine."; \
	  echo "next:  apt-get install g++"; exit 3; }
	$(BIN)/questbench build
	$(BIN)/questbench kernel --seq-len 8k,32k --max-seconds 10 --out $(OUT)
	$(BIN)/questbench accuracy --task passkey --out $(OUT)
	$(BIN)/questbench report --out $(OUT)
	@echo "Done. To type 'questbench' as the README does, activate the environment in this shell first:"
	@echo "    . $(BIN)/activate"

test: .venv/installed-dev lint types pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

pytest: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

# Slow: the tests of models with the oldest and the newest transformers.
test-transformers: .venv/installed-dev
	$(BIN)/python scripts/check_transformers.py

# Slow: builds sdist and wheel and installs them in an empty environment.
wheel: .venv/installed-dev
	$(BIN)/python scripts/check_wheel.py

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11."; \
	  echo "next:  make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 3; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make environments: the venv module is missing."; \
	  echo "next:  apt-get install python3-venv"; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
