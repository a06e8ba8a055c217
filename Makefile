# The developer's commands; plain GNU make over small scripts, nothing that cannot be typed by hand.

PYTHON ?= python3
ARGS ?=

# An interpreter that somebody asked for is used; without one, a present environment keeps the one that it has.
ASKED_PYTHON := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))
UPDATE_VENV := PYTHON='$(ASKED_PYTHON)' scripts/venv.sh
BIN := .venv/bin
CODE := $(wildcard relay tests bench scripts/*.py packer/files)

# The demo needs less than the tests, and is where most people begin: it takes a whole environment if there is one.
ifneq ($(wildcard .venv/.stamp),)
DEMO_VENV := .venv
DEMO_LOCKS := dev
else
DEMO_VENV := .venv-demo
DEMO_LOCKS := demo build
endif

# Tests run side by side, a file at a time: two for each processor, since most of them wait for something most of the
# time. 0: one after another.
TEST_JOBS ?= $(shell jobs=$$(( $$(nproc 2>/dev/null || echo 1) * 2 )); [ $$jobs -le 6 ] || jobs=6; echo $$jobs)

QUICK := tests/core tests/settings tests/ipc tests/worker tests/supervisor tests/commands tests/scripts \
	tests/test_address.py tests/test_log_writer.py tests/test_own_addresses.py \
	tests/e2e/traffic/test_bulk.py::test_connections_do_not_get_each_others_bytes

# Compiled modules are kept, whatever the environment says: the tests start relay a thousand times and more.
export PYTHONDONTWRITEBYTECODE :=

# Speed is compared with the Python that a distribution ships: others may be built without profile-guided optimisation.
BENCH_PYTHON ?= /usr/bin/python3

.DEFAULT_GOAL := help
.PHONY: help demo test test-bicep test-packages test-image quick coverage fuzz bench flood soak timeline same test-kernels check lint types imports
.PHONY: workflows dist deb audit release format venv deps lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "ARGS='...' goes to the program behind demo, test or lock: make test ARGS='-k drain -x'"
	@echo "PYTHON=... chooses the interpreter (3.11 or newer): make venv PYTHON=python3.13"

demo: ## a stand-in hub, relay and devices on loopback; no privileges
	@$(UPDATE_VENV) $(DEMO_VENV) $(DEMO_LOCKS)
	@$(DEMO_VENV)/bin/relay demo $(ARGS)

test: venv ## all tests, TEST_JOBS at a time; names the slowest, and what was skipped and why
	@scripts/deps.sh report
	@$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --durations 10 $(ARGS)

test-packages: venv ## install bundle, Debian package, image and compose file, built and run for real: 20 minutes, root
	@$(BIN)/python -m pytest -m packages -o faulthandler_timeout=0 --numprocesses $(TEST_JOBS) --dist loadfile --durations 10 \
		$(ARGS)

test-image: venv ## the machine image, baked into a local Ubuntu 24.04, booted and checked: 15 minutes, root
	@$(BIN)/python -m pytest -m image -o faulthandler_timeout=0 --durations 10 $(ARGS) tests/image/test_*.py

test-bicep: venv ## the templates for Azure, with the SDK's models and checkov: 5 minutes, a Bicep compiler
	@$(BIN)/python -m pytest -m 'azure_tools or not azure_tools' --durations 5 $(ARGS) tests/bicep

quick: venv ## half a minute of tests: all that start no relay, engines apart, and one that does
	@FUZZ_EXAMPLES=25 $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) -m 'not slow and not packages and not image and not azure_tools' \
		--hypothesis-profile quick --quiet $(ARGS) $(QUICK)

coverage: venv ## what the tests run of relay/, workers included, as a table; twice the time of make test
	@rm -rf .coverage && mkdir .coverage
	-@TEST_PATIENCE=3 $(BIN)/coverage run -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --quiet $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-kernels: venv ## the engines' tests and a soak on Debian 12's and 13's kernels, in QEMU (ARGS='--release trixie')
	@$(BIN)/python -m scripts.test_kernels $(ARGS)

dist: venv ## dist/: wheel, source archive, install bundles for x86-64 and arm64; five minutes (ARGS='--arch x86_64')
	@$(BIN)/python -m scripts.dist $(ARGS)

deb: venv ## dist/relay_VERSION_ARCH.deb for amd64 and arm64; five minutes, needs dpkg-deb (ARGS='--arch x86_64')
	@$(BIN)/python -m scripts.deb $(ARGS)

audit: ## tell which locked run-time packages have known vulnerabilities; needs PyPI, and blocks nothing
	@PYTHON='$(PYTHON)' scripts/audit.sh

fuzz: venv ## the parsers, hellos beside OpenSSL's, 50,000 examples a test (FUZZ_EXAMPLES=200000)
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),50000) $(BIN)/python -m pytest tests/core/test_client_hello.py \
		tests/core/test_hello_layouts.py tests/core/test_proxy_header.py tests/core/test_proxy_header_v2.py \
		-q --timeout 3600 -o faulthandler_timeout=0 --hypothesis-show-statistics

bench: ## compare with HAProxy, side by side; needs haproxy, a C compiler and two processors (ARGS='--rounds 20')
	@PYTHON=$(BENCH_PYTHON) scripts/venv.sh .venv-bench run build
	@.venv-bench/bin/python -m bench.compare --python .venv-bench/bin/python $(ARGS)

flood: venv ## a hundred thousand sources: memory, log, and those who are served meanwhile (ARGS='--sources 1000000')
	@$(BIN)/python -m bench.flood $(ARGS)

soak: venv ## ten minutes of random conversations, every byte checked (ARGS='--minutes 60')
	@$(BIN)/python -m bench.soak $(ARGS)

timeline: venv ## 5,000 TLS connections, a drain, reloads, a kill, an eviction, as a picture (ARGS='--connections 500')
	@$(BIN)/python -m bench.timeline $(ARGS)

same: venv ## ten minutes of scripts, the same through both engines, HAProxy and directly (ARGS='--seed 1 --count 9')
	@$(BIN)/python -m bench.same $(ARGS)

workflows: ## .github/workflows, with actionlint: the one on PATH, or PyPI's, which needs GitHub
	@PYTHON='$(PYTHON)' scripts/workflows.sh

release: venv ## everything that a release needs, checked, built and tagged here; pushes nothing (VERSION=0.1.0)
	@$(BIN)/python -m scripts.release $(or $(VERSION),$(error make release VERSION=0.1.0)) $(ARGS)

check: lint types imports ## lint, format, types and import rules, as CI has them

lint: venv
	@echo "==> ruff: rules and format"
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet .

types: venv
	@echo "==> mypy --strict (half a minute the first time)"
	@$(BIN)/mypy --strict --no-error-summary $(CODE)

imports: venv
	@echo "==> import-linter: imports point one way"
	@$(BIN)/lint-imports --no-logo

format: venv ## reformat the code and apply the safe fixes
	@echo "==> ruff: fixing and formatting"
	@$(BIN)/ruff check --fix --quiet --output-format concise .
	@$(BIN)/ruff format .

venv: ## .venv with everything that tests and checks need, from hashes
	@$(UPDATE_VENV) .venv dev

deps: ## the system programs that some tests want, with apt-get
	@PYTHON='$(PYTHON)' scripts/deps.sh install

lock: ## requirements/*.txt from pyproject.toml; ARGS=--upgrade for newer releases
	@PYTHON='$(PYTHON)' scripts/lock.sh $(ARGS)

clean: ## remove what make created: environments, caches, builds
	@echo "==> removing environments, caches and builds"
	@rm -rf .venv .venv-audit .venv-demo .venv-bench .venv-lock .venv-workflows dist
	@rm -rf .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
