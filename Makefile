# One command each: install, demo, test, check, bench. All make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSER ?= chromium
# Processes that run tests, with a core each; a module stays within one.
WORKERS ?= 2
# ONNX Runtime on the CPU, or on a GPU.
PROVIDER ?= cpu
EXTRAS := $(PROVIDER),broker,repair,weights,archive,otel,console,cluster,timestamps,bench,dev
STAMP := $(VENV)/.installed

export TOKENIZERS_PARALLELISM := false
# What is fetched stays in this folder, unless this user has such a cache already.
CACHE := $(CURDIR)/.cache
kept = $(or $(wildcard $(HOME)/$(1)),$(CACHE)/$(2))
export UV_CACHE_DIR ?= $(call kept,.cache/uv,uv)
export M2_REPO ?= $(call kept,.m2/repository,maven)
export JGO_CACHE_DIR ?= $(call kept,.cache/jgo,jgo)
export HF_HOME ?= $(call kept,.cache/huggingface,huggingface)

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help install demo test unit integration explore chaos check checkov format bench pictures schemas chart rules dashboards constraints gpu clean

help: ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt overrides.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ares-stream needs Python 3.11 or newer; set PYTHON=...")'
	@echo "installing into $(VENV): 7.3 GB, most of it what torch brings for GPUs; without one see README.md"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-cache-dir 'uv>=0.9'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --override overrides.txt --editable '.[$(EXTRAS)]'
	touch $(STAMP)

demo: install ## Stream conversations through a real Kafka and find coupled failures
	@echo "the demo takes about three minutes on two cores, one more the first time (it trains its models), 2.5 GB of memory"
	@echo "and 0.1 GB of disk: 46 MB of Kafka, fetched once, and what it writes to build/"
	$(BIN)/ares demo

test: install ## Unit tests, under coverage with its floor, and integration tests
	$(MAKE) --no-print-directory coverage
	$(MAKE) --no-print-directory integration

unit: install ## Unit tests alone, in seconds
	$(PYTEST) tests/unit

integration: install ## Tests against a real broker and real models
	$(PYTEST) tests/integration

explore: install ## Property-based tests on examples that nobody has tried
	HYPOTHESIS_PROFILE=explore $(PYTEST) $$(grep -rl --include='test_*.py' 'from hypothesis' tests/unit tests/integration)

chaos: install ## Random kills, for minutes; then every fault five times, counted by another client
	$(BIN)/python -m pytest tests/chaos
	mkdir -p build && $(BIN)/ares bench chaos --profile full --seed 7 --json build/chaos.json

check: install ## Lint, types and the direction of dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/ares schemas check docs/schemas
	$(BIN)/python helm/generate.py --check
	$(BIN)/python -m services.dashboards --check
ifneq ($(shell command -v dashboard-linter),)
	for page in helm/ares-stream/dashboards/*.json; do dashboard-linter lint --strict -c .dashboards.yaml $$page || exit 1; done
endif
	$(MAKE) --no-print-directory rules
	$(BIN)/yamllint --strict docker-compose.yml services tests/cluster helm/ares-stream/*.yaml helm/ares-stream/files
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint services/Dockerfile
	$(MAKE) --no-print-directory checkov

checkov: install ## Security checks of the rendered chart, by checkov in an environment of its own
	test -x build/checkov/bin/checkov || { $(BIN)/uv venv --quiet build/checkov && $(BIN)/uv pip install --quiet --python build/checkov/bin/python 'checkov==3.3.30'; }
	rm -rf build/rendered
	$(BIN)/python -m tests.support.rendered build/rendered
	build/checkov/bin/checkov --config-file .checkov.yaml --directory build/rendered

wheel-test: install ## Build the wheel, install it with [cpu,console] into an empty environment, score a file
	.ci/wheel-test

coverage: install ## Branch coverage of the unit tests
	$(PYTEST) tests/unit --cov --cov-report=term:skip-covered

mutants: install ## Mutation testing of what decides: survivors in build/mutants.txt, for hours
	$(BIN)/python -m tests.mutants build/mutants.txt

gpu: ## On a machine with a GPU: its tests and its benchmark, in an environment of its own
	$(MAKE) --no-print-directory VENV=$(VENV)-gpu PROVIDER=gpu install
	ARES_REQUIRE_GPU=1 ARES_REQUIRE_KAFKA=1 $(VENV)-gpu/bin/python -m pytest -v tests/integration/test_gpu.py
	$(VENV)-gpu/bin/python -m benchmarks.gpu --json build/gpu.json

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Throughput of the panel, then from topic to visible verdict, beside the raw ONNX Runtime loop
	$(BIN)/python -m benchmarks.bench_scoring
	$(BIN)/ares bench throughput --profile chats --json build/throughput.json

pictures: install ## Draw the pictures of the docs from runs of the demo and of all services
	ARES_DASHBOARD_PICTURES=docs/pictures $(BIN)/python -m pytest tests/integration/test_prometheus.py -n 0
	$(BIN)/ares demo --picture docs/pictures/demo.svg
	$(BROWSER) --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 \
	  --window-size=1100,1500 --screenshot=docs/pictures/report.png "file://$(CURDIR)/build/demo/report.html"

schemas: install ## Write the JSON Schemas and the AsyncAPI document
	$(BIN)/ares schemas write docs/schemas

chart: install ## Write what the chart says of itself: schema, README, topics
	$(BIN)/python helm/generate.py

RULES := helm/ares-stream/rules/*.yaml helm/ares-stream/rules/kubernetes/*.yaml

rules: install ## Check the alerts: promtool (Debian: prometheus), pint where it is installed
	$(BIN)/yamllint --strict -d "{extends: default, rules: {line-length: disable, document-start: disable, braces: disable}}" $(RULES) tests/rules
ifneq ($(shell command -v promtool),)
	promtool check rules --lint=all --lint-fatal $(RULES)
	promtool test rules tests/rules/*.yaml
else
	@echo "promtool is not installed (apt-get install prometheus): rules are not checked"
	@test "$(ARES_REQUIRE_PROMETHEUS)" != 1
endif
ifneq ($(shell command -v pint),)
	pint --offline lint --min-severity=warning $(RULES)
endif

dashboards: install ## Write the dashboards of Grafana from services/dashboards
	$(BIN)/python -m services.dashboards

constraints: install ## Resolve constraints.txt anew
	$(BIN)/uv pip compile --quiet --upgrade pyproject.toml $(foreach e,$(subst $(comma), ,$(EXTRAS)),--extra $(e)) \
	  --override overrides.txt --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 -o constraints.txt
	sed -i '1i # Versions and hashes that the tests ran with. Made by `make constraints`; addresses are left out on purpose.' constraints.txt

clean: ## Remove the environment, what was built, and what was fetched into this folder
	rm -rf $(VENV) $(VENV)-gpu $(CACHE) build dist .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

comma := ,
