# make serve   everything from nothing: environment, weights, engine, gateway
# make test    all tests;  make test-fast leaves out those that take minutes (a real vLLM, runs that are killed)
# make check   what CI runs: format, lint, types, tests
# make dashboards   writes dashboards/built, what Grafana loads, from the code beside it
# make simulate   how often the statistics of experiments err, how soon they see: some minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CUDA lock where there is an NVIDIA GPU, the CPU lock elsewhere; BURNISH_ENGINE=cpu or cuda decides otherwise.
BURNISH_ENGINE ?= $(if $(wildcard /dev/nvidia0),cuda,cpu)
STAMP := $(VENV)/.installed-$(BURNISH_ENGINE)
CLIENTS := .venv-clients
# Python compiles what it imports, the first time; pip would compile all of it, and of torch and vLLM little is ever imported.
# It has to be let: where nothing is compiled to stay, a run takes three times as long to begin.
unexport PYTHONDONTWRITEBYTECODE
PIP := -m pip install --no-deps --no-compile --disable-pip-version-check --quiet

.PHONY: serve test test-fast check dashboards simulate lint install clients-venv lock clean

serve: $(STAMP)
	@exec $(BIN)/burnish serve

# Most of them on up to eight cores, a file after the other on each (in the folders' order: the acceptance tests have the longest
# files, and those should not be last); those that look at times alone; then those on a real vLLM.
TOGETHER := -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --ignore tests/integration
ALONE := -m pytest --ignore tests/integration

test: $(STAMP) $(CLIENTS)/.installed
	$(BIN)/python $(TOGETHER) -m "not alone"
	$(BIN)/python $(ALONE) -m alone
	$(BIN)/python -m pytest tests/integration

test-fast: $(STAMP)
	$(BIN)/python $(TOGETHER) -m "not alone and not slow"
	$(BIN)/python $(ALONE) -m "alone and not slow"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy adapters gateway trainer loadtests dashboards

check: lint test

dashboards: $(STAMP)
	$(BIN)/python -m dashboards

simulate: $(STAMP)
	$(BIN)/python -m tests.simulations

install: $(STAMP)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
	  { echo "Burnish needs Python 3.11 to 3.14 and $(PYTHON) is another; try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements/$(BURNISH_ENGINE).txt requirements/torch-cpu.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing the $(BURNISH_ENGINE) lock into $(VENV) (once; some minutes)"
	@$(if $(filter cpu,$(BURNISH_ENGINE)),$(BIN)/python $(PIP) -r requirements/torch-cpu.txt || \
	  $(BIN)/python $(PIP) --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/torch-cpu.txt,:)
	@$(BIN)/python $(PIP) --require-hashes -r requirements/$(BURNISH_ENGINE).txt
	@$(BIN)/python $(PIP) --no-build-isolation -e .
	@touch $@

clients-venv: $(CLIENTS)/.installed

$(CLIENTS)/.installed: requirements/clients.txt
	@echo "installing the published clients into $(CLIENTS) (once)"
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python $(PIP) --require-hashes -r requirements/clients.txt
	@touch $@

lock:
	requirements/lock

clean:
	rm -rf $(VENV) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache
