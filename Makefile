# make demo   train, compress, export, check and time a small model on generated data; prints one table
# make test   lint, types, tests: what has to hold, on a third of the models; REST=2/3 adds the second third of the rest
# make test-all  all tests, those on models of other packages too, which it installs
# make fuzz   rewrite over 2,000 random models and check each; an hour or so on two cores
# make mutants count how many of 100 random mistakes in the library the tests notice; an hour or so
# make golden write docs/laws.md and the verdicts of all covered models again, after a change of the laws; read the diff
# make docs   build the documentation into docs/_build; warnings are errors
# make lint   only ruff and mypy
# make format let ruff rewrite the sources
# make clean  remove what the above made
#
# Each creates its virtual environment itself. Variables: PYTHON (3.11 or newer), VENV, EXTRAS, WORKERS (test processes).

VENV ?= .venv
WORKERS ?= 2
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	path=$$(command -v $$name) && \
	$$path -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	echo $$path && break; done)
# ONNX Runtime for the GPU only where a driver answers: the two builds cannot live side by side.
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
EXTRAS ?= $(RUNTIME),deepctr,loadgen,parquet,plot,report,docs,dev

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PLATFORMS := $(VENV)/.platforms
REST ?= 0/1
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
SOURCES := $(wildcard afm_fx passes benchmarks examples tests)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all fuzz mutants golden docs lint format clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo --out demo-output --force

test: lint
	$(PYTEST) --rest $(REST)

test-all: lint $(PLATFORMS)
	$(PYTEST) --rest 1/1

fuzz: $(INSTALLED)
	$(PYTEST) --timeout=0 --hypothesis-profile=fuzz --rest 1/1 tests/passes/test_random_graphs.py

mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.mutants --work-dir .mutants

golden: $(INSTALLED)
	$(BIN)/python -m tests.zoo.golden
	$(BIN)/python -m tests.docs.laws_page

docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES) docs
	$(BIN)/ruff format --check $(SOURCES) docs
	$(BIN)/mypy $(SOURCES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES) docs
	$(BIN)/ruff format $(SOURCES) docs

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv on PATH; set PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]" -c constraints.txt
	@touch $@

# torchrec without its requirements: it asks for the CUDA build of fbgemm.
$(PLATFORMS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS),platforms,torchrec]" -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps torchrec -c constraints.txt
	@touch $@

clean:
	rm -rf .venv .venv-ci demo-output docs/_build .mutants build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
