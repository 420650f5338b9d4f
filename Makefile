# What a developer and CI call. Each recipe is short; what it does is in scripts/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PYTEST_ARGS ?=
# How many processes run tests; 0 for one that can be debugged. They wait more than they work.
PYTEST_WORKERS ?= 2
PINS_ARGS ?=
BENCH_ARGS ?=
LIMITS_ARGS ?=

BIN := .venv/bin
SERVICES = $(PYTHON) -m scripts.services
# The servers' addresses, for the commands that follow in the same recipe.
WITH_SERVICES = addresses=$$($(SERVICES) env); set -a; eval "$$addresses"; set +a;
# The same for everybody, whatever a developer's .env says.
CHECK_SETTINGS = READ_DOT_ENV=false SECRET_KEY=for-checks-only
# Versions for every Python that we run on; those that are pinned stay, unless PINS_ARGS has them upgraded.
PINS = .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --no-strip-extras --generate-hashes \
	--custom-compile-command 'make pins' $(PINS_ARGS)
# The mark of an environment that is made is named after its Python and its list. With another list, packages are installed
# into it as it is, since something may be running in it; only another Python has it made from nothing.
made = $(1)/.made-$(shell { $(PYTHON) --version; cat $(2); } 2>&1 | cksum | tr ' ' -)
define make_venv
	@echo "Making $(@D) from $(1)" >&2
	@version='import sys, pip; print(sys.version)'; \
		[[ "$$($(@D)/bin/python -c "$$version" 2>/dev/null)" == "$$($(PYTHON) -c "$${version/, pip}")" ]] || $(PYTHON) -m venv --clear $(@D)
	@rm -f $(@D)/.made-*
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $(1)
	@touch $@
endef

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; 3.11 or newer is needed. Say which: make PYTHON=python3.12 ..." % sys.version_info[:2])'

.PHONY: venv
venv: $(call made,.venv,requirements-dev.txt) ## Make .venv with everything for development and tests

.venv/.made-%: | python
	@$(SERVICES) packages mysql
	$(call make_venv,requirements-dev.txt)

.PHONY: services
services: python ## Start MariaDB, MySQL, PostgreSQL and Kafka (those that no environment variable gives; MYSQL=optional: without MySQL if it cannot be fetched)
	@$(SERVICES) up

.PHONY: services-status
services-status: python ## Say how the servers are
	@$(SERVICES) status

.PHONY: services-down
services-down: python ## Stop the servers; their data stays
	@$(SERVICES) down

.PHONY: test
test: venv ## Run the tests, on real servers: make test PYTEST_ARGS='-k retry -x'
	@$(SERVICES) packages test
	@$(SERVICES) up
	@$(WITH_SERVICES) $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) $(PYTEST_ARGS)

.PHONY: test-long
test-long: ## Run the tests that make test leaves out: each takes more than two minutes or 1 GB, or is one of very many
	@$(MAKE) test PYTEST_WORKERS=0 PYTEST_ARGS="-m long --timeout=3600 -o faulthandler_timeout=3700 $(PYTEST_ARGS)"

.PHONY: coverage
coverage: ## Run the tests and say which lines none of them reached (tests that compute take half as long again)
	@$(MAKE) test PYTEST_ARGS="--cov --cov-report=term $(PYTEST_ARGS)"

.PHONY: check
check: check-style check-types check-imports check-django check-compose ## Run every check that is no test (with -k: do not stop at the first)

.PHONY: check-style
check-style: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: check-types
check-types: venv
	$(CHECK_SETTINGS) $(BIN)/mypy

.PHONY: check-imports
check-imports: venv
	$(BIN)/lint-imports

.PHONY: check-django
check-django: venv
	$(CHECK_SETTINGS) $(BIN)/python manage.py check
	$(CHECK_SETTINGS) $(BIN)/python manage.py makemigrations --check --dry-run

.PHONY: check-compose
check-compose: venv
	$(BIN)/python -m scripts.check_compose

.PHONY: api-docs
api-docs: python ## Write docs/api.md from the docstrings of what is public
	@$(PYTHON) -m scripts.api_docs

.PHONY: format
format: venv ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: venv-demo
venv-demo: $(call made,.venv-demo,requirements-demo.txt)

.venv-demo/.made-%: | python
	$(call make_venv,requirements-demo.txt)

.PHONY: demo
demo: venv-demo ## Show it with nothing but Python: SQLite and the embedded broker
	@.venv-demo/bin/python -m scripts.demo

.PHONY: demo-kafka
demo-kafka: venv ## Show it as it is run for real: MariaDB and Kafka
	@$(SERVICES) up mariadb kafka
	@$(WITH_SERVICES) $(BIN)/python -m scripts.demo --kafka

.PHONY: run
run: ## Serve the admin on the demo's data
	@[[ -x .venv-demo/bin/python || -x $(BIN)/python ]] || $(MAKE) --no-print-directory venv-demo
	@for bin in .venv-demo/bin $(BIN); do [[ ! -x $$bin/python ]] || exec $$bin/python -m scripts.demo --serve; done

.PHONY: bench
bench: venv ## Measure speed against ceilings of the same run: make bench BENCH_ARGS='relay --json FILE --plots docs'
	@$(SERVICES) up $(if $(filter mysql --database=mysql,$(BENCH_ARGS)),mysql,mariadb) kafka
	@$(WITH_SERVICES) $(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: limits
limits: venv ## Hold memory, backlog and pruning against their limits: make limits LIMITS_ARGS='soak --minutes 1'
	@$(SERVICES) up mariadb kafka
	@$(WITH_SERVICES) $(BIN)/python -m benchmarks.limits $(LIMITS_ARGS)

.PHONY: chaos
chaos: venv ## Break everything at random and check the promises: make chaos CHAOS_ARGS='--minutes 5 --seed 7'
	@$(SERVICES) packages test
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

.PHONY: venv-tools
venv-tools: $(call made,.venv-tools,requirements-tools.txt)

.venv-tools/.made-%: | python
	$(call make_venv,requirements-tools.txt)

.PHONY: pins
pins: venv-tools ## Bring the lists of packages up to date with requirements*.in: make pins PINS_ARGS=--upgrade
	@$(PINS) requirements.in --output-file requirements.txt
	@$(PINS) requirements.in --constraint requirements.txt --no-emit-package mysqlclient --output-file requirements-demo.txt
	@$(PINS) requirements-dev.in --constraint requirements.txt --output-file requirements-dev.txt
	@$(PINS) requirements-tools.in --output-file requirements-tools.txt

.PHONY: audit
audit: venv-tools ## Ask the vulnerability service about every pinned package (not in CI: an advisory is no fault of a change)
	@.venv-tools/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r requirements-dev.txt

.PHONY: clean
clean: ## Remove all that was made here: environments, caches, the servers with their data
	@$(SERVICES) down --purge
	rm -rf build .venv .venv-demo .venv-tools .services.env .coverage .coverage.* htmlcov coverage.xml test-results
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
