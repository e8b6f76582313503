# make demo    set up, then train a network on handwritten digits (options: ARGS="--data DIR --shifts")
# make test    set up, then ruff (lint and format), mypy and the tests
# make race    worked case C against PyTorch and JAX, in an environment of its own (DATA=directory of MNIST)
# make docs    put today's dumps and docstrings into README.md and docs/
# make bench   every workload against PyTorch, JAX and numpy: table, bench.md and bench.png (ARGS="--only NAME")
# make clean   remove both environments
#
# PYTHON may name an interpreter (3.11 or newer); VENV another place for the environment.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v $$p && break; done)
VENV ?= .venv
BENCH_VENV ?= .bench-venv
ARGS ?=
DATA ?=

.PHONY: demo test race docs clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/graphc demo $(ARGS)

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest $(ARGS)

race: $(BENCH_VENV)/bench.stamp
	$(BENCH_VENV)/bin/python benchmarks/race.py $(if $(DATA),--data $(DATA)) $(ARGS)

bench: $(BENCH_VENV)/bench.stamp
	$(BENCH_VENV)/bin/python benchmarks/bench.py --markdown bench.md --plot bench.png --json bench.json $(ARGS)

docs: $(VENV)/demo.stamp
	$(VENV)/bin/python docs/refresh.py

$(VENV)/bin/python $(BENCH_VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "graphc needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "setting up $(dir $(@D)) with $(PYTHON)"
	@$(PYTHON) -m venv $(dir $(@D))

# A stamp is as old as the last installation: nothing is installed again until pyproject.toml changes.
$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[examples]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/demo.stamp

$(BENCH_VENV)/bench.stamp: pyproject.toml | $(BENCH_VENV)/bin/python
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV)
