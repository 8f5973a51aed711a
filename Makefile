# All the verbs of the project.  `make help` lists them; on a fresh Debian machine `make lab` and `make test` install
# what they need by themselves (apt as root or with sudo, a virtual environment in .venv).
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
PYTEST := $(VENV)/bin/python -m pytest
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

prefix ?= /usr/local
VM_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/felixpy-vm

.PHONY: help setup lab lab-down test unit netns docs check fmt fault docker bench install deb vm clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing: Debian packages and the virtual environment
	@VENV=$(VENV) ./.ci/setup

lab: setup ## bring up the three-node lab with pods that ping, and show it
	@$(SUDO) $(VENV)/bin/felixpy-lab demo containerlab/three-node/three-node.clab.yml

lab-down: ## remove every trace of the lab
	@$(SUDO) $(VENV)/bin/felixpy-lab down containerlab/three-node/three-node.clab.yml

test: setup ## install what is missing and run all tests
	@$(SUDO) $(PYTEST) $(ARGS)

unit: ## the pure tests: no root, no network
	@$(PYTEST) -q -n auto tests/unit tests/property tests/golden $(ARGS)

netns: ## the tests with a real kernel, real etcd and real BGP peers (root)
	@$(SUDO) $(PYTEST) -q tests/netns tests/interop $(ARGS)

fault: ## the fault tests (root)
	@$(SUDO) $(PYTEST) -q tests/fault $(ARGS)

docs: ## build the documentation into build/site (extra `docs`); strict, without network
	@$(PY) -c 'import material' 2>/dev/null || $(VENV)/bin/pip install -q -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet && echo "build/site/index.html"

check: ## format, lint, types, import rules
	@$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

fmt: ## format and sort imports
	@$(VENV)/bin/ruff check --fix-only -q . ; $(VENV)/bin/ruff format -q .

docker: ## the tests in containers (root, dockerd): builds the image first, which takes minutes
	@$(SUDO) FELIXPY_DOCKER=1 $(PYTEST) -q tests/docker $(ARGS)

bench: setup ## benchmarks, each beside a peer in the same run
	@$(SUDO) $(PY) -m bench $(ARGS)

install: ## install programs and units: prefix=/usr/local DESTDIR=
	@prefix=$(prefix) DESTDIR=$(DESTDIR) ./packaging/stage

deb: ## build the Debian package in dist/ (VERSION=… for another version)
	@./packaging/build-deb dist

vm: ## install the package on two virtual machines and try everything there
	@VM=1 VENV=$(VENV) ./.ci/setup
	@$(SUDO) env FELIXPY_VM_CACHE=$(VM_CACHE) $(PYTEST) -x -m vm -p no:cacheprovider tests/vm $(ARGS)

clean: ## remove caches and the virtual environment
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
