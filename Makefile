# make demo: install, then search, decode, add and find a charge density
# make test: install, then format, lint, types and tests

PYTHON ?= python3
# torch first and pinned: a plain `torch` from the registry brings several GB of CUDA
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

# the densities and properties that the shipped store was built from
SHARED ?= ../shared

.PHONY: demo test docs store fill clean

demo: $(VENV)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

docs: $(VENV)/.installed
	$(BIN)/python scripts/make_cli_docs.py docs/cli.md

# builds what is missing; remove store/ to build it anew
store: $(VENV)/.installed
	test -e store/chgdb.json || $(BIN)/chgdb init store --attribution "$$(cat scripts/attribution.txt)"
	$(BIN)/chgdb add $(SHARED)/densities --properties $(SHARED)/data/properties_6059.csv.gz --store store
	$(BIN)/chgdb import-table $(SHARED)/data/properties_6059.csv.gz --structures $(SHARED)/data/structures.json.gz --store store
	$(BIN)/python scripts/import_features.py store $(SHARED)/data/structures.json.gz
	$(BIN)/chgdb predict --all --store store
	$(BIN)/chgdb compact --store store

# densities that ChargE3Net predicts for the structures without one, the smallest cell first; takes
# hours, may be interrupted, and goes on where it was
fill: $(VENV)/.installed
	-$(BIN)/chgdb add $(SHARED)/data/structures.json.gz --properties $(SHARED)/data/properties_6059.csv.gz --store store
	$(BIN)/chgdb predict --all --store store

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache
