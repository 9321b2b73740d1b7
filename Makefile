# make            the environment, in .venv
# make test       every test that needs no GPU
# make test-gpu   the tests that need one, on a machine that has some
# make check      lint and types
# make demo       exact attention on two ranks
# make peers      a second environment with the projects that the benchmarks compare with

PYTHON ?= python3
RANKS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin

# One thread a rank: ranks share the cores, and results repeat.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := env
.PHONY: env test test-gpu check demo peers benchmark clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: env
	$(BIN)/python -m pytest

test-gpu: env
	$(BIN)/python -m pytest tests/gpu

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks examples
	$(BIN)/lint-imports

demo: env
	@echo "Exact attention on $(RANKS) ranks. Rendering a video comes with the HunyuanVideo pipeline."
	$(BIN)/torchrun --standalone --nproc-per-node $(RANKS) examples/attention.py

peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml setup.py constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	touch $@

benchmark: peers
	$(PEERS)/bin/python -m benchmarks.attention --ranks $(RANKS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .hypothesis .*_cache
