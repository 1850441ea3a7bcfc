# make help: the list of commands.  PYTHON=python3.12 make …: another interpreter.  DB=mysql make demo: on MySQL.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DB ?= mariadb
MINUTES ?= 20
# Both servers, unless DB is given.
SOAK_DB := $(if $(filter file,$(origin DB)),mariadb mysql,$(DB))
# Tests mostly wait for servers; each process starts its own.
JOBS ?= 6
# make bench CASES=idle,burst: only these.  FULL=1 make bench: the sizes for which the aims are defined, half an hour.
# AGAINST=revision make bench: its service takes turns with this one's.  ROUNDS=20: more turns, a narrower interval.
# BENCH_DIRECTORY=directory: on the disk to measure; default: the temporary directory.
CASES ?=
FULL ?=
AGAINST ?=
ROUNDS ?=
BENCH_DIRECTORY ?=
RESULTS ?= bench-results
.DEFAULT_GOAL := help
.PHONY: help demo bench test soak lint format reference install servers image image-test clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## archive an observing session on private servers, check every file, clean up (DB=mysql for MySQL)
	@$(BIN)/cdc-archiver demo --db $(DB)

bench: install ## compare the service with plain rsync and with polling: tables, JSON, plots (CASES=idle,burst FULL=1)
	@$(BIN)/python -m benchmarks --db $(DB) --scale $(if $(filter-out 0 no,$(FULL)),full,short) \
	  --cases '$(CASES)' --against '$(AGAINST)' $(if $(ROUNDS),--rounds $(ROUNDS)) --results $(RESULTS) $(if $(BENCH_DIRECTORY),--directory '$(BENCH_DIRECTORY)')

test: lint servers ## run lint and all tests, on real servers
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

soak: install servers ## run all faults at once for MINUTES=20 on each database server (DB=mysql: only there), then audit the archive
	@export PYTHONPATH=tests/support:tests/faults; \
	$(BIN)/python -m pytest -m long --numprocesses 2 || exit 1; \
	$(BIN)/python -m fuzz --inputs 1000000 || exit 1; \
	for database in $(SOAK_DB); do $(BIN)/python -m soak --minutes $(MINUTES) --db $$database || exit 1; done

lint: install ## check style (ruff), types (mypy) and the layers of the package (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

reference: install ## update the table of settings in docs/configuration.md
	$(BIN)/python -m cdc_archiver.settings.reference docs/configuration.md

format: install ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed ## install the project and its tools into .venv, at the tested versions

servers: install ## fetch MariaDB, MySQL, sshd, Prometheus and a browser into the cache directory, unless they are installed
	@$(BIN)/python -m cdc_archiver.sandbox fetch mariadb mysql ssh prometheus browser

# IMAGE_BASE=…: another base. Default: for image the Dockerfile's, from a registry; for image-test one made of Debian's packages.
# ENGINE=podman make image: with Podman, whose own format has no health check.
ENGINE ?= docker
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

image: ## build the container image cdc_archiver with this machine's engine
	$(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) --target runtime --build-arg VERSION=$(VERSION) $(if $(IMAGE_BASE),--build-arg BASE=$(IMAGE_BASE)) \
	  --build-arg REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) --tag cdc_archiver:$(VERSION) .

image-test: servers ## build the image without an engine, as root, run it and archive files with it
	$(BIN)/python -m pytest --override-ini timeout=1800 -s tests/deploy/image.py

clean: ## remove what the commands above made here (except the cache directory and benchmark results)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# In Debian, venv is a separate package.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); } \
	  || { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
