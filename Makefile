# make            the environment, in .venv
# make test       every test that needs no GPU
# make test-gpu   the tests that need one, on a machine that has some
# make check      lint and types
# make docs       the documentation, in site/
# make demo       a video from a prompt, rendered on two ranks, in demo/
# make quality    64 prompts and 32 pictures for the models that come with the package, judged
# make train-demo trains them, the first from scratch, in about three hours on two cores
# make soak       a batch whose processes are killed 200 times, and a server with crowds of clients,
#                 in half an hour
# make plots      the pictures in docs/
# make peers      a second environment with the projects that the benchmarks compare with
# make benchmark  attention against the peers; make benchmark-denoise: a denoising step;
#                 make benchmark-decode: decoding in tiles; make benchmark-plan: predictions

PYTHON ?= python3
RANKS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin

# One thread a rank: ranks share the cores, and results repeat.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := env
.PHONY: env test test-gpu check docs demo quality train-demo soak plots peers benchmark \
	benchmark-denoise benchmark-decode benchmark-plan clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Three at once on two cores: some wait while others compute. Files of few and long tests come first.
test: env
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 10

test-gpu: env
	$(BIN)/python -m pytest tests/gpu

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks examples training
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: env
	mkdir -p demo
	$(BIN)/longtake generate "a green triangle moving up on a navy background" \
		--devices $(RANKS) --seed 1 --output demo/triangle.mp4 --overwrite

quality: env
	$(BIN)/python -m tests.quality.demo

# The models that come with the package, from scratch, or on from the last checkpoint.
train-demo: env
	OMP_NUM_THREADS=2 $(BIN)/python -m training.demo text-to-video demo/training \
		--output configs/models/demo
	OMP_NUM_THREADS=2 $(BIN)/python -m training.demo image-to-video demo/training \
		--start configs/models/demo --output configs/models/demo-i2v

soak: env
	$(BIN)/python -m tests.kills --kills 200
	$(BIN)/python -m tests.crowd --requests 4

plots: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt matplotlib
	$(BIN)/python -m benchmarks.planning.scaling

peers: $(PEERS)/.installed

$(PEERS)/.installed: pyproject.toml setup.py constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	touch $@

benchmark: peers
	$(PEERS)/bin/python -m benchmarks.attention --ranks $(RANKS)

benchmark-denoise: peers
	$(PEERS)/bin/python -m benchmarks.denoise --ranks $(RANKS)

benchmark-decode: peers
	$(PEERS)/bin/python -m benchmarks.decode --ranks $(RANKS)

# What the planner predicts of this machine beside what is measured, on a profile measured first.
benchmark-plan: env
	$(BIN)/python -m benchmarks.planning.published
	$(BIN)/python -m benchmarks.planning.predictions --ranks $(RANKS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info demo site .hypothesis .*_cache
