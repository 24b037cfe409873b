# Everything runs in .venv, which the first target that needs it creates (about two minutes).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the engine is compiled from: a change installs again, which compiles only what changed.
ENGINE := $(shell find backends/engine -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)
# With a compiler at hand, an engine that does not compile is an error.
export OBERT_REQUIRE_ENGINE := $(if $(shell command -v $${CXX:-c++}),1,0)
# Two workers with one thread each: more threads than cores only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-full test-compat lint format docs wheel-test clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

venv: $(STAMP)  ## create .venv with everything that demo and tests need

$(STAMP): pyproject.toml constraints.txt $(ENGINE)
	@echo "make: installing obert-compiler and what it needs into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[compile,test,dev]'
	@touch $@

demo: $(STAMP)  ## compress all-MiniLM-L6-v2 and print before and after (under 10 minutes)
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## tests with tiny models
	@echo "make: running the tests with tiny models ('make test-full' adds full-size ones)"
	$(PYTEST) -q -m "not slow and not compat"

test-full: $(STAMP)  ## all tests, with full-size models
	$(BIN)/python -m pytest -q -m "not compat"

COMPAT := tests/compat

test-compat: $(STAMP)  ## the artefact in Optimum, sentence-transformers, Node.js and the browser
	@echo "make: installing what the artefact is tried in into $(COMPAT)/optimum and $(COMPAT)/node"
	$(PYTHON) -m venv $(COMPAT)/optimum/.venv
	$(COMPAT)/optimum/.venv/bin/pip install -q --disable-pip-version-check -r $(COMPAT)/optimum/requirements.txt
	npm install --ignore-scripts --no-fund --no-audit --silent --prefix $(COMPAT)/node
	$(BIN)/python -m pytest -q $(COMPAT)

lint: $(STAMP) .typing  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --config-file pyproject.toml .typing/obert_compiler

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write docs/cli.md from the code
	$(BIN)/python docs/generate_cli.py

wheel-test: $(STAMP)  ## build the wheel, install it into an empty venv without torch, use it there
	$(BIN)/python -m pytest -q tests/packaging/test_wheel.py

# mypy does not follow the import hook of the editable install: it reads a tree of links.
.PHONY: .typing
.typing:
	@rm -rf $@ && mkdir -p $@/obert_compiler
	@ln -s $(CURDIR)/obert_compiler/* $(CURDIR)/passes $(CURDIR)/backends $@/obert_compiler/

clean:  ## remove what the targets made, but not .venv
	rm -rf .typing build dist .pytest_cache .mypy_cache .ruff_cache
