# Everything a developer runs. `make serve` and `make test` need Python 3.11+, a C compiler and nothing else.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# A GPU is used where there is one: PyCUDA is built against the CUDA toolkit found on PATH.
GPU := $(shell command -v nvcc >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu,)
# Where the tests with a GPU are: collecting the other folders takes test oracles that a GPU host may lack.
GPU_TESTS := tests/kernels tests/system/test_gpu_server.py
SERVE := --repository deploy/models --model-control explicit

.PHONY: serve test test-gpu sanitize lint format kernels schema bench image clean

serve: $(VENV)/.serve  ## start the server on $(PORT) with the demo models
	$(BIN)/lacuna serve $(SERVE) --port $(PORT)

test: $(VENV)/.dev  ## the whole test suite, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-gpu:  ## the GPU tests, with the python at hand and no set-up
	$(PYTHON) -m pytest -m gpu $(GPU_TESTS)

sanitize:  ## compute-sanitizer on the smallest shape of every kernel variant, with the python at hand
	$(PYTHON) -m pytest -m sanitize tests/kernels

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

kernels: $(VENV)/.serve  ## compile the shipped kernel variants without a GPU; ALL=1: every variant
	$(BIN)/python -m lacuna_kernels.cuda.compiler --check $(if $(ALL),--all)

schema: $(VENV)/.serve  ## write the JSON Schema of the graph format
	$(BIN)/python -m lacuna_kernels.ops > kernels/lacuna_kernels/graph.schema.json

bench:  ## latency on the device of this machine, with the python at hand: make bench SCAN=scan.bin
	$(PYTHON) kernels/bench/bench_latency.py $(SCAN)

image:
	docker build --tag lacuna .

clean:
	rm -rf $(VENV) build dist

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.serve: $(VENV)/.venv pyproject.toml constraints.txt clients/python/pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$(GPU)formats]' --editable clients/python
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(GPU)dev]'
	touch $@
