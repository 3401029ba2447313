# Every target sets up what it needs first; a second run finds it done. `make` alone lists them.

ENV := . build/setup/env &&
SETUP := sh scripts/setup.sh
ONCE ?=
SECONDS ?= $(or $(UBI_SOAK_SECONDS),600)

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-python test-e2e test-guest soak lint contract format build dev bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the main job on a real disk image; leaves a daemon to try things on (ONCE=1: ends by itself)
	@$(SETUP) demo
	@$(ENV) exec python -m demo $(if $(ONCE),--once)

test: ## everything: linters, Rust tests, Python tests, end-to-end tests on both I/O engines
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh all

test-rust: ## the engine's own tests
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh rust

test-python: ## the control plane's tests (ARGS="-k name" goes to pytest)
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh python $(ARGS)

test-e2e: ## the daemon with real clients, on io_uring and on threads (ARGS="-k name" goes to pytest)
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh e2e $(ARGS)

test-guest: ## machines in software emulation on vhost-user-blk disks, the daemon killed under them
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh guest $(ARGS)

soak: ## kills, power cuts and random requests for as long as asked (SECONDS=3600)
	@$(SETUP) test
	@$(ENV) UBI_SOAK_SECONDS=$(SECONDS) exec sh scripts/test.sh soak

lint: ## ruff, mypy strict, rustfmt, clippy with warnings denied
	@$(SETUP) test
	@$(ENV) exec sh scripts/test.sh lint

contract: ## renew schemas/ and docs/rpc.md from the methods' models and docs/rpc.notes.md
	@$(SETUP) test
	@$(ENV) exec python scripts/contract.py

format: ## rewrite the sources as the format checks want them
	@$(SETUP) test
	@$(ENV) ruff check --fix-only --quiet . ; ruff format . && cargo fmt --manifest-path native/Cargo.toml --all

build: ## the package into .venv: ubi_tgt, ubi-rpc and ubi work afterwards
	@$(SETUP) build

dev: ## everything that tests and benchmarks need, without running them
	@$(SETUP) test

bench: ## the comparison with other servers (ARGS go to bench)
	@$(SETUP) bench
	@$(ENV) exec python -m bench $(ARGS)

lock: ## renew requirements-*.lock from pyproject.toml
	@$(SETUP) build
	@$(ENV) exec sh scripts/lock.sh

clean: ## remove what was built here (the system packages stay)
	rm -rf build .venv native/target ubi_rpc/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
