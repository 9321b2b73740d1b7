# make             create the environment in .venv
# make test        run all tests that need no GPU
# make test-gpu    run the tests that need a GPU
# make check       lint, check types and imports
# make docs        build the documentation in site/
# make demo        render a video on two ranks into demo/
# make quality     judge videos of the demo models: 64 prompts, 32 pictures
# make train-demo  train the demo models, about three hours on two cores
# make soak        kill processes of a batch 200 times, and send crowds to a server: half an hour
# make plots       draw the figures in docs/
# make peers       create a second environment with the projects that benchmarks compare with
# make benchmark   measure attention against the peers
# make benchmark-denoise, benchmark-decode, benchmark-plan
#                  measure denoising steps, decoding in tiles, and the planner's predictions

PYTHON ?= python3
RANKS ?= 2
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin

# One thread per rank: ranks share the cores, and results are reproducible.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := env
.PHONY: env test test-gpu check docs demo quality train-demo soak plots peers benchmark \
	benchmark-denoise benchmark-decode benchmark-plan clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Three processes on two cores, since some tests wait. Files with few, long tests come first.
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
	$(BIN)/python -m tests.quality.few_step

# Trains from scratch, or from the last checkpoint. The second model and the LoRA start from the first.
train-demo: env
	OMP_NUM_THREADS=2 $(BIN)/python -m training.demo text-to-video demo/training \
		--output configs/models/demo
	OMP_NUM_THREADS=2 $(BIN)/python -m training.demo image-to-video demo/training \
		--start configs/models/demo --output configs/models/demo-i2v
	OMP_NUM_THREADS=2 $(BIN)/python -m training.demo few-step demo/training \
		--start configs/models/demo --output configs/loras/demo-6step.safetensors

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

# Compares predictions with measurements on this machine, after measuring its profile.
benchmark-plan: env
	$(BIN)/python -m benchmarks.planning.published
	$(BIN)/python -m benchmarks.planning.published_training
	$(BIN)/python -m benchmarks.planning.predictions --ranks $(RANKS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info demo site .hypothesis .*_cache
