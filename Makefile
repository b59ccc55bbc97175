# What each target does: `make help`. Everything it needs is installed into .venv, once.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
JOBS ?= 2
FIGURE ?=
DATA ?=
ONLY ?= *

BIN := $(VENV)/bin
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
DEMO := runs/demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check prove mutate bench accuracy sids claims docs clean
.DELETE_ON_ERROR:

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(CORE) ## train on a year of real purchases, compare seven methods, recommend
	$(BIN)/tesserec fit recipes/demo.toml --out $(DEMO)/bundle --report $(DEMO)/report.html
	$(BIN)/tesserec recommend $(DEMO)/bundle --user 17841 --k 10

test: $(DEV) ## all tests but the long ones, with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not prove" -n $(JOBS) \
		--cov --cov-branch --cov-report=term --cov-fail-under=90

check: $(DEV) ## lint, format, types, layers, freshness of docs/
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.docs --check

prove: $(DEV) ## the long property runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m prove --timeout=0

mutate: $(DEV) ## would the tests notice a bug? writes docs/mutants.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutate --jobs $(JOBS)

bench: $(DEV) ## measure again what begins with FIGURE=, for example FIGURE=house; claims need DATA=folder too
	$(BIN)/python -m benchmarks.run --figure "$(FIGURE)" $(if $(DATA),--data "$(DATA)")

accuracy: $(CORE) ## compare methods on public data: DATA=folder, ONLY='beauty.last_out.*' for some runs
	@test -d "$(DATA)" || { echo "name the folder of the data sets, as in: make accuracy DATA=/path/to/data" >&2; exit 1; }
	$(BIN)/tesserec bench benchmarks/accuracy/suite.toml --data "$(DATA)" --out benchmarks/results/ranks --only '$(ONLY)'

sids: $(CORE) ## compare tokenizers below one generator: DATA=folder, ONLY='beauty.last_out.rq_kmeans.seed0' for one run
	@test -d "$(DATA)" || { echo "name the folder of the data sets, as in: make sids DATA=/path/to/data" >&2; exit 1; }
	$(BIN)/tesserec bench benchmarks/semantic_ids/suite.toml --data "$(DATA)" --out benchmarks/results/semantic_ids --only '$(ONLY)'

claims: $(CORE) ## effects of single methods on public data: DATA=folder, ONLY='dense.seed0' for some cells
	@test -d "$(DATA)" || { echo "name the folder of the data sets, as in: make claims DATA=/path/to/data" >&2; exit 1; }
	set -e; for claim in rq_fsq cold_auc expansion crab dsirm; do \
		$(BIN)/python -m benchmarks.claims.$$claim --data "$(DATA)" --only '$(ONLY)'; done

docs: $(DEV) ## write the generated pages and sections again
	$(BIN)/python -m tools.docs

clean: ## remove the virtual environment and everything that runs left behind
	rm -rf $(VENV) runs .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tesserec needs Python 3.11 or newer, and none is on the PATH: install one," \
		"or name it, as in: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit("tesserec needs Python 3.11 or newer, and this is " + sys.version.split()[0] \
		+ ": name another, as in make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tesserec into $(VENV); PyTorch is the large part"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tesserec and its development tools into $(VENV); PyTorch is the large part"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(CORE)
