# make help: what there is.  PYTHON=python3.12 make …: another interpreter.  DB=mysql make demo: on MySQL.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DB ?= mariadb
# Tests wait for servers more than they compute; each process starts servers of its own.
JOBS ?= 4
.DEFAULT_GOAL := help
.PHONY: help demo test lint format reference install servers clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## archive an observing session on private servers, prove it, clean up (DB=mysql for MySQL)
	@$(BIN)/cdc-archiver demo --db $(DB)

test: lint servers ## lint, types and all tests, on real servers
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(PYTEST_ARGS)

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reference: install ## renew the table of settings in the README
	$(BIN)/python -m cdc_archiver.reference README.md

format: install ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed ## the project and its tools into .venv, at the tested versions

servers: install ## private MariaDB, MySQL, sshd and Prometheus into the cache folder, where they are not installed
	@$(BIN)/python -m cdc_archiver.sandbox fetch mariadb mysql ssh prometheus

clean: ## remove what the commands above made here (not the cache folder)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Debian has venv in a package of its own.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); } \
	  || { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
