# Every target sets up what it needs from a fresh clone: `make bench` and `make test` are the two to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= results
GPU_PYTHON ?= python3
GPU_OUT ?= results/gpu
READY := $(VENV)/.ready

.PHONY: bench test test-all lint gpu-check clean

bench: $(READY)  ## the main job on the embedded default; prints where the report is
	$(BIN)/tda bench --preset default --out $(OUT)

test: $(READY)  ## the default tests
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-all: test  ## then the slow ones
	$(BIN)/python -m pytest -q -m "slow and not gpu"

lint: $(READY)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-check:  ## everything that needs a GPU, with the interpreter and packages that are there; no network
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -q -m gpu
	PYTHONPATH=. $(GPU_PYTHON) -m tda.cli.main bench --preset gpu --out $(GPU_OUT)

# torch first and by itself, so that its wheel is the pinned one whatever else asks for it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) results build .pytest_cache .mypy_cache .ruff_cache .hypothesis
