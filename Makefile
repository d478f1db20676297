# Everything that one does with a checkout. `make` alone shows the targets.
#
#   PYTHON=/path/to/python3   take this Python, not the newest that is found
#   HOST= PORT= ...           settings for `make run`: any that `qwen-proxy settings` lists
#   NAME= TLS=                the address of the site that `make install` sets up, and
#   DESTDIR= PREFIX=          where it puts the files, see docs/operations.md
#   LINTED=1                  `make test` leaves `lint` out, which has run
#   UPGRADE=0                 `make install` keeps the dependencies that are there

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test fast clients pythons lowest lint fix bench docs reference release deb install uninstall clean

# Relative, so that the path of the checkout may contain spaces.
python := .venv/bin/python
# Files stay together, so that each server is started once, and in the order of tests/conftest.py.
together = --dist loadfile --no-loadscope-reorder
# More processes than two cores: tests wait, those of servers for most of their time. Each further
# one reads all tests once more.
parallel = -n 3 $(together)
pytest = $(python) -m pytest $(ARGS)
# Of the tests without servers, as a whole: for a part of them it says nothing. Python 3.11 has nothing
# that counts the lines of greenlets well and in reasonable time.
floor = $(if $(ARGS),,$$($(python) -c 'import sys; print("--cov=qwen_wsgi --cov-report= --cov-fail-under=95" * hasattr(sys, "monitoring"))'))

export PYTHON DESTDIR PREFIX PURGE NAME TLS UPGRADE

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: ## serve on 127.0.0.1:8080; with no Qwen account yet, a built-in fake one answers
	@sh install/venv.sh run
	@QWEN_PROXY_SANDBOX="$${QWEN_PROXY_SANDBOX:-auto}" exec $(python) -m qwen_wsgi.cli serve

test: $(if $(LINTED),,lint) ## format, lint, types and all tests
	@sh install/venv.sh dev
	@$(pytest) -n 4 $(together) -m server
	@$(pytest) $(parallel) -m "not server" $(floor)

fast: ## the tests that start no servers (ARGS="-k name -x" goes to pytest)
	@sh install/venv.sh dev
	@$(pytest) $(parallel) -m "not server" $(floor)

clients: ## install the real clients into .clients (1.5 GB of npm packages), and run their tests
	@sh install/venv.sh dev
	@sh install/clients.sh -n 2 $(ARGS)

pythons: ## the same on every Python of this machine between those of `test` and `lowest`
	@sh install/venv.sh dev
	@sh install/pythons.sh $(parallel) $(ARGS)

lowest: ## the same with the lowest versions that setup.cfg allows
	@sh install/lowest.sh $(parallel) $(ARGS)

lint: ## format check, ruff, mypy, and what .ci/check_files.py checks
	@sh install/venv.sh dev
	@$(python) -m ruff format --check .
	@$(python) -m ruff check .
	@$(python) -m mypy
	@$(python) .ci/check_files.py

fix: ## format the code, repair what ruff can, and write share/ anew
	@sh install/venv.sh dev
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .
	@$(python) install/share.py

bench: ## count the functions of a call, then measure the speed goals
	@sh install/venv.sh dev
	@$(python) -m benchmarks.calls
	@$(python) -m benchmarks $(ARGS)

docs: ## the documentation as a site, in dist/docs; it needs nothing from elsewhere
	@sh install/venv.sh dev
	@$(python) install/docs.py

reference: ## write docs/reference/ anew, from the code
	@sh install/venv.sh dev
	@$(python) -B install/reference.py

release: ## check that everything is ready for a release, and build its files in dist/
	@sh install/venv.sh dev
	@$(python) -B install/release.py

deb: ## build dist/*.deb for this Debian and its Python (PYTHON=/usr/bin/python3.12: another one)
	@sh install/deb.sh

install: ## as root: service, nginx site and /etc/qwen-proxy; starts nothing
	@sh install/install.sh

uninstall: ## as root: undo `make install`; PURGE=1 also removes settings and state
	@sh install/uninstall.sh

clean: ## remove .venv, .venv-*, .clients, caches and build products
	rm -rf .venv .venv-* .clients qwen_wsgi/_version.py build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
