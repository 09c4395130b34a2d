# Everything one does with a checkout. Needs Debian or Ubuntu (or a Mac) with make and Python 3.11 or newer; `make setup` does the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run test test-timescale torture truth docs lint lock bench clean

# The distribution's Python first: it is built with profile-guided optimisation, which version managers' seldom is (docs/decisions/0078).
PYTHON := $(shell for needs in ensurepip sys; do for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c "import $$needs, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && exit; done; done)
BIN := .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## find or install all that is needed; starts nothing
	@test -n "$(PYTHON)" || { echo "Timepoint needs Python 3.11 or newer: apt-get install python3, or brew install python"; exit 1; }
	@$(PYTHON) deploy/prepare.py

run: setup ## the product with a demo network and moving buses (FEED=file.zip: your own network; PORT=8787); Ctrl-C stops it
	@$(BIN)/python -m deploy.local run $(if $(FEED),--feed '$(FEED)')

test: ## every test, on throw-away servers of their own (ARGS='-k hold' for some of them; JOBS=2 at a time)
	@test -n "$(PYTHON)" || { echo "Timepoint needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) deploy/prepare.py --tests
	@$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder $(ARGS)

test-timescale: setup ## the history tests against TimescaleDB in a Debian 13 folder (TIMESCALE_URL: against that server)
	@bash deploy/test-timescale

torture: setup ## five minutes of buyers against servers that are killed, stopped and frozen (SECONDS=300 SEED=7)
	@$(BIN)/python -m bench.torture --seconds $(or $(SECONDS),300) --seed $(or $(SEED),7)

truth: setup ## how true tracking is, against its bars: matching, assignment, deviation, fences (DATA=folder: recorded days too)
	@$(BIN)/python -m bench.truth $(if $(DATA),--data '$(DATA)')

docs: setup ## the documents that are made from the code: docs/openapi.json, asyncapi.json, settings.md
	@$(BIN)/python -m api.documents

lint: setup ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: setup ## renew the locked versions and digests of all packages
	@$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --extra dev \
		--custom-compile-command "make lock" pyproject.toml -o deploy/requirements.lock
	@for set in tools node; do $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" deploy/$$set.in -o deploy/$$set.lock; done
	@if [ -f api/web/package.json ]; then cd api/web && npm install --package-lock-only --ignore-scripts --no-audit --no-fund; fi

bench: setup ## every promised speed beside its bar, in less than ten minutes (ONLY='age fan' for some; FEED=file.zip: import of that feed too)
	@$(BIN)/python -m bench.bars $(foreach one,$(ONLY),--only $(one)) $(if $(FEED),--feed '$(FEED)') $(if $(OUT),--out '$(OUT)')

clean: ## remove what can be made again; the demo's data in .dev stays
	rm -rf .venv build dist api/web/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis test-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
