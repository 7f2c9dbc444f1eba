.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help setup setup-dev run services test test-fast test-unit test-wheel test-spam test-pages test-replay test-tampering test-clients test-alerts test-ground simulate chaos attack fuzz bench \
        check check-fast monitoring clients openapi asyncapi format lock lists audit-deps release clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.ready: requirements.lock pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup requirements.lock
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup requirements-dev.lock
	@touch $@ $(VENV)/.ready

setup: $(VENV)/.ready  ## create .venv: locked dependencies and the `registrar` command

setup-dev: $(VENV)/.ready-dev  ## the same with the tools of tests and checks

run: setup  ## start everything, embedded; ARGS="--port 8001" passes options on
	@exec $(BIN)/registrar up $(ARGS)

# WORKERS=1 runs one test at a time; WITHOUT='rabbitmq pgbouncer redis nginx prometheus' skips what needs them, where they cannot be installed.
WORKERS ?= 3
WITHOUT ?=
PYTEST = $(BIN)/pytest -rs -n $(WORKERS) --dist worksteal $(addprefix --without=,$(WITHOUT))
test: setup-dev services  ## every test; WORKERS=1 in sequence, WITHOUT=rabbitmq skips
	$(PYTEST) $(ARGS)

test-fast: setup-dev services  ## the tests that are not marked slow
	$(PYTEST) -m "not slow" $(ARGS)

test-unit: setup-dev  ## the tests without I/O: no services needed
	$(BIN)/pytest -n $(WORKERS) --dist worksteal tests/unit $(ARGS)

test-wheel: setup-dev  ## the wheel in an empty environment, with each Python there is
	$(BIN)/pytest -rs tests/e2e/test_wheel.py --every-python $(ARGS)

# 50 kills, 100 rebuilds among 100,000 reads, 1,000 differences among 250,000 rows: `make test` does the same in small.
REPLAY = rebuilds rebuilds_interrupted rebuilds_under_load rebuilds_and_the_database
test-replay: setup-dev  ## rebuilds and verifications at full size, ten minutes
	$(BIN)/pytest -rs --full-size $(REPLAY:%=tests/faults/test_%.py) tests/faults/test_planted_differences.py $(ARGS)

test-tampering: setup-dev  ## a thousand alterations of the log by a superuser, five minutes
	$(BIN)/pytest -rs --full-size tests/integration/test_audit_verify.py -k random_alterations $(ARGS)

# A Prometheus in scaled time watches the service while it is broken in each way that an alert is for.
test-alerts: setup-dev services  ## every alert is fired by its real fault, 25 minutes
	$(BIN)/pytest -rs --full-size -n $(WORKERS) --dist worksteal tests/alerts $(ARGS)

test-spam: setup-dev  ## our mails' scores in SpamAssassin, which it installs
	@command -v spamassassin >/dev/null || scripts/install spamassassin
	$(BIN)/pytest -rs tests/integration/test_spam_score.py $(ARGS)

test-pages: setup-dev  ## our pages in Chromium, which it installs
	@command -v chromium >/dev/null || scripts/install chromium
	$(BIN)/pytest -rs tests/e2e/test_pages.py $(ARGS)

test-ground: setup-dev  ## against real servers, as root; ARGS="--only exim,sendmail"
	$(BIN)/python -m tests.ground $(ARGS)

services:
	@scripts/services $(WITHOUT)

SEEDS ?= 2000
simulate: setup-dev  ## the seeded simulation; SEEDS=20000, ARGS="--seed 17 --trace"
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

# Everything is killed, paused and cut off at random while people register, PEOPLE in a second. BROKER=1 sends mail over
# RabbitMQ. In the end no trace may have a gap (docs/tracing.md).
# Then, with nothing broken, read models are rebuilt until READS reads are done, of which none may fail; and then the
# service is attacked with REQUESTS requests (0: it is not).
MINUTES ?= 10
BROKER ?=
READS ?= 1000000
PEOPLE ?= 2.5
chaos: setup-dev $(if $(BROKER),services)  ## break things at random; MINUTES=20, BROKER=1, SEED=7 repeats
	$(BIN)/python -m tests.faults --minutes $(MINUTES) --people $(PEOPLE) --reads $(READS) $(if $(BROKER),--broker) \
		$(if $(SEED),--seed $(SEED)) $(ARGS)
	$(if $(filter-out 0,$(REQUESTS)),$(ATTACK))

# From 200 networks at once, beside honest people: mails for one mailbox, guesses, spoofed headers, slow clients.
chaos: REQUESTS ?= 1000000
attack: REQUESTS ?= 100000
ATTACK = scripts/services rabbitmq pgbouncer && $(BIN)/python -m tests.attack --requests $(REQUESTS) $(if $(SEED),--seed $(SEED))
attack: setup-dev  ## attack a service from 200 networks; REQUESTS=1000000, SEED=7
	$(ATTACK) $(ARGS)

# Requests that are generated from the OpenAPI document, then histories against the model of tests/fuzz/test_histories.py.
fuzz: setup-dev  ## generated requests and histories, longer; MINUTES=20
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)
	$(BIN)/pytest -rs --full-size tests/fuzz/test_histories.py

bench: setup-dev  ## benchmarks, half an hour; ARGS="--quick" or "--only append"
	$(BIN)/python -m bench $(ARGS)

check: check-fast  ## format, lint, import contracts and types
	$(BIN)/mypy

check-fast: setup-dev  ## the same without types: two seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

monitoring: setup-dev  ## write the alert rules and dashboards from their descriptions
	$(BIN)/python scripts/objectives.py
	$(BIN)/python scripts/dashboards.py

clients:  ## generate clients for Python and TypeScript from docs/openapi.json
	PYTHON="$(PYTHON)" scripts/clients

test-clients: setup-dev  ## both generated clients do what an application does, two minutes
	$(BIN)/pytest -rs --full-size tests/clients $(ARGS)

openapi: setup-dev  ## write docs/openapi.json, which clients are generated from
	APPROVE=1 $(BIN)/pytest tests/integration/test_names_that_stay.py -k routes $(ARGS)

asyncapi: setup-dev  ## write docs/asyncapi.json, which other services rely on
	$(BIN)/python -m entrypoints.api.asyncapi docs/asyncapi.json

format: setup-dev  ## rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup-dev  ## resolve the dependencies again (hashes, no index address)
	scripts/lock

audit-deps: setup-dev  ## look for known vulnerabilities in what is locked (needs a network)
	@$(BIN)/python scripts/audit-deps $(ARGS)

release: setup-dev  ## build the wheel and its bills of materials (CycloneDX) into dist/
	@scripts/release

lists: setup-dev  ## update the lists of common passwords and disposable domains
	$(BIN)/python scripts/lists.py

clean:  ## remove the virtual environment and caches; .registrar/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache registrar.egg-info build dist
