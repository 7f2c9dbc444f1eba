.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help setup setup-dev run services test test-fast simulate chaos bench check asyncapi format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.ready: requirements.lock pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup requirements.lock
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup requirements-dev.lock
	@touch $@ $(VENV)/.ready

setup: $(VENV)/.ready  ## create .venv with the locked dependencies and the `registrar` command

setup-dev: $(VENV)/.ready-dev  ## the same with the tools of tests and checks

run: setup  ## start everything on the embedded default; ARGS="--port 8001" and the like are passed on
	@exec $(BIN)/registrar up $(ARGS)

WORKERS ?= 3
WITHOUT ?=
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist worksteal $(addprefix --without=,$(WITHOUT))
test: setup-dev services  ## every test, on services of its own; WORKERS=1 for one at a time, WITHOUT=rabbitmq where it cannot be installed
	$(PYTEST) $(ARGS)

test-fast: setup-dev services  ## the tests that are not marked slow
	$(PYTEST) -m "not slow" $(ARGS)

services:
	@scripts/services $(WITHOUT)

SEEDS ?= 2000
simulate: setup-dev  ## the seeded simulation; SEEDS=20000 for more, ARGS="--seed 17 --trace" replays one
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

MINUTES ?= 10
BROKER ?=
chaos: setup-dev $(if $(BROKER),services)  ## everything killed, paused and cut off at random while people register; MINUTES=20, BROKER=1 with mail over RabbitMQ, SEED=7 repeats a schedule
	$(BIN)/python -m tests.faults --minutes $(MINUTES) $(if $(BROKER),--broker) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: setup-dev  ## the benchmarks as ratios, side by side in one run (about half an hour; ARGS="--quick", "--only append")
	$(BIN)/python -m bench $(ARGS)

check: setup-dev  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

asyncapi: setup-dev  ## write docs/asyncapi.json, what other services may rely on; a test tells when it is out of date
	$(BIN)/python -m entrypoints.api.asyncapi docs/asyncapi.json

format: setup-dev  ## rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup-dev  ## resolve the dependencies anew (hashes, no index address)
	scripts/lock

clean:  ## remove the virtual environment and the caches; the data directory stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache registrar.egg-info
