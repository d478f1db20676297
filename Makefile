# Everything that one does with a checkout. `make` alone shows the targets.
#
#   PYTHON=/path/to/python3   take this Python, not the newest on PATH
#   HOST= PORT= ...           settings for `make run`: any that `qwen-proxy settings` lists
#   DESTDIR= PREFIX=          where `make install` puts the files, see docs/operations.md

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test fast lint fix bench install uninstall clean

# Relative, so that the path of the checkout may contain spaces.
python := .venv/bin/python
# Four processes, also on two cores: most of the time is spent waiting for servers. Files stay
# together, so that each server is started once.
pytest = $(python) -m pytest -n 4 --dist loadfile $(ARGS)

export PYTHON DESTDIR PREFIX PURGE

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: ## serve on 127.0.0.1:8080; with no Qwen account yet, a built-in fake one answers
	@sh install/venv.sh run
	@QWEN_PROXY_SANDBOX="$${QWEN_PROXY_SANDBOX:-auto}" exec $(python) -m qwen_wsgi.cli serve

test: lint ## format, lint, types and all tests: what CI runs
	@$(pytest)

fast: ## the tests that start no servers (ARGS="-k name -x" goes to pytest)
	@sh install/venv.sh dev
	@$(pytest) -m "not server"

lint: ## format check, ruff, mypy
	@sh install/venv.sh dev
	@$(python) -m ruff format --check .
	@$(python) -m ruff check .
	@$(python) -m mypy

fix: ## format the code and repair what ruff can
	@sh install/venv.sh dev
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .

bench: ## measure the speed goals
	@sh install/venv.sh dev
	@$(python) -m benchmarks $(ARGS)

install: ## as root: service, nginx site and /etc/qwen-proxy; starts nothing
	@sh install/install.sh

uninstall: ## as root: undo `make install`; PURGE=1 also removes settings and state
	@sh install/uninstall.sh

clean: ## remove .venv, caches and build products
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
