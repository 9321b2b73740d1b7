# make            the environment, in .venv
# make test       every test that needs no GPU
# make test-gpu   the tests that need one, on a machine that has some
# make check      lint and types
# make demo       a video from a prompt, rendered on two ranks, in demo/
# make peers      a second environment with the projects that the benchmarks compare with
# make benchmark  attention against the peers; make benchmark-denoise: a denoising step

PYTHON ?= python3
RANKS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin

# One thread a rank: ranks share the cores, and results repeat.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := env
.PHONY: env test test-gpu check demo peers benchmark benchmark-denoise clean

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
	$(BIN)/mypy tests benchmarks examples training
	$(BIN)/lint-imports

demo: env
	@echo "The model is tiny and its weights are random: expect moving noise, not a picture."
	$(BIN)/python -m tests.tiny demo/model
	$(BIN)/longtake generate "a red cat walks slowly on grass" --model demo/model --devices $(RANKS) \
		--height 192 --width 320 --num-frames 33 --num-inference-steps 20 --output demo/cat.mp4

peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml setup.py constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	touch $@

benchmark: peers
	$(PEERS)/bin/python -m benchmarks.attention --ranks $(RANKS)

benchmark-denoise: peers
	$(PEERS)/bin/python -m benchmarks.denoise --ranks $(RANKS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info demo .hypothesis .*_cache
