# Two commands on a fresh machine: `make run` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run install install-test test check format lint types rooms pytest simulate chaos chaos-zones fuzz bench image compose-test lock clean
.DEFAULT_GOAL := run

run: install
	$(BIN)/mesh up

install: .venv/installed

test: install-test check

install-test: .venv/installed-test

# What CI runs: format, lint, types, import rules, then the tests (their summary comes last).
check: install-test format lint types rooms pytest

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

rooms:
	$(BIN)/lint-imports

# Side by side: the tests of processes mostly wait. A worker that has run out of tests takes some of another's.
WORKERS ?= 3
pytest:
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# The locked versions, from pyproject.toml, for every platform and Python that we support.
lock:
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate -o requirements/run.lock pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate --extra test -o requirements/test.lock pyproject.toml

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Event Mesh needs CPython 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

# Builds the compiled twins too, where there is a C compiler; without one the references run (`mesh --version` tells).
.venv/installed: .venv/bin/python pyproject.toml setup.py requirements/run.lock $(wildcard */*.pyx */*.pxd */*.pxi */*/*.pyx */*/*.pxi)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements/run.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

.venv/installed-test: .venv/installed requirements/test.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements/test.lock
	@touch $@

# Faults between publish and log, and of whole zones of sinks, in simulated worlds; a failure prints the seed that
# replays it.
SEEDS ?= 3000
simulate: install-test
	SEEDS=$(SEEDS) $(BIN)/pytest -n $(WORKERS) --dist worksteal tests/simulation

# Three sinks and two gateways as processes, under load and faults at random; SEED= replays the choices of a run.
chaos: export CHAOS_SECONDS ?= 120
chaos: export SEED ?=
chaos: export PYTHONPATH := tests:.
chaos: install-test
	$(BIN)/python -m support.chaos

# Two zones of three sinks each, every node in a network namespace of its own: kills, pulled cables, cuts between zones.
chaos-zones: export CHAOS_SECONDS ?= 120
chaos-zones: export SEED ?=
chaos-zones: export PYTHONPATH := tests:.
chaos-zones: install-test
	$(BIN)/python -m support.machines_chaos

# The gateway beside nats-server, in ratios: prints the table, writes the page. BENCH="--rows '1to1*'": only some rows.
BENCH ?= --write docs/performance.md
bench: install-test
	$(BIN)/python -m bench $(BENCH)

# The compiled twins on a build with sanitizers: random scripts on them and on their references, then the tests of both.
# A script that fails is printed with its seed: `make fuzz FIRST=<seed> SCRIPTS=1`.
SCRIPTS ?= 20000
FIRST ?= 0
FUZZ ?= 5
ON_BOTH := tests/test_forwarding.py tests/test_sublist.py tests/test_plane.py tests/test_twins.py \
  tests/test_lanes.py tests/test_lane_replies.py \
  tests/test_records.py tests/test_columns.py tests/test_replay.py tests/test_record_twins.py
fuzz: export PYTHONPATH := tests
fuzz: install-test
	$(BIN)/python -m support.fuzz --sanitize --seeds $(FIRST) $$(($(FIRST) + $(SCRIPTS)))
	$(BIN)/python -m support.fuzz --sanitize --seeds $(FIRST) $$(($(FIRST) + $(SCRIPTS))) --small-limits
	FUZZ=$(FUZZ) $(BIN)/python -m support.fuzz --sanitize $(ON_BOTH)

# The image of docs/compose.md, from wheels that are made here for the Python of .venv: BASE has to have the same one.
PYTHON_HERE = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BASE ?= python:$(PYTHON_HERE)-slim
MESH_IMAGE ?= localhost/event-mesh
image: install-test
	rm -rf compose/wheels/*.whl build/lib*
	$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w compose/wheels .
	$(BIN)/pip wheel -q --disable-pip-version-check -w compose/wheels -r requirements/run.lock
	docker build --build-arg BASE=$(BASE) -t $(MESH_IMAGE) -f compose/Dockerfile .
	rm -f compose/wheels/*.whl

# Two zones in containers: on the engine that there is, or on one that is started for it and stopped again.
compose-test: install-test
	compose/with-engine sh -ec '$(MAKE) image && $(BIN)/pytest -rP tests/test_compose.py'

clean:
	rm -rf .venv build *.egg-info */*.so */*/*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
