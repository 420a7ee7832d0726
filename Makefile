# What people type and what CI runs. Every target does its own set-up, with nothing but a Rust
# toolchain, Python 3.11 or newer and make on the machine, as root or not.

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PY := .venv/bin/python
TARGET := $(or $(CARGO_TARGET_DIR),target)
DENY := .tools/bin/cargo-deny
DENY_VERSION := 0.20.2

PYTEST := $(CURDIR)/$(PY) $(CURDIR)/scripts/run_pytest.py

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Running ------------------------------------------------------------------------------------

.PHONY: run
run: python release ## The example shop behind layby, until Ctrl-C; with ONCE=1 drive it, check every answer, end
	@exec $(PY) examples/run.py --layby $(TARGET)/release/layby $(if $(filter-out 0,$(ONCE)),--once)

.PHONY: bench
bench: python postgresql clients proxies ## Measure layby against its bounds and other servers; BENCH="--quick main" for a part
	@exec $(PY) benches/run.py $(BENCH)

.PHONY: package
package: python ## Source and wheel of the worker package, in dist/
	$(PY) -m build --no-isolation --outdir dist python

.PHONY: wheel
wheel: python ## The gateway and the worker package as one wheel, in dist/
	$(PY) -m maturin build --release --locked --out dist

.PHONY: docs
docs: python ## The documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "open site/index.html"

# A folder of its own in target/: everything in it is compiled otherwise. `--target`, so that what runs
# while compiling is not static itself.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC = $(TARGET)/$(HOST)/release/layby

NO_MODULES = $(abspath $(TARGET))/$(HOST)/no-modules.o

.PHONY: static
static: # The gateway as a static binary.
	@mkdir -p $(dir $(NO_MODULES))
	cc -c -o $(NO_MODULES) scripts/no-modules.c
	RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --locked --release --target $(HOST) --bin layby -- \
		-C link-arg=-Wl,--wrap=__libc_dlopen_mode -C link-arg=$(NO_MODULES)

.PHONY: archive
archive: python static ## The static binary with its papers as an archive, in dist/
	$(PY) scripts/archive.py --binary $(STATIC) --out dist

VERSION = $(shell sed -n '/^version/{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)

.PHONY: image
image: static ## The image of the gateway, in dist/, for docker load; no daemon is needed
	@scripts/need buildah buildah=buildah
	scripts/image $(STATIC) $(VERSION) dist/layby-$(VERSION)-image.tar

# Tests --------------------------------------------------------------------------------------

# Not for everything: the gateway warns of LAYBY_* variables that it does not know.
test-rust: export LAYBY_TEST_PYTHON := $(CURDIR)/$(PY)
test-docs test-e2e test-deploy screenshots: export LAYBY_BINARY := $(abspath $(TARGET))/debug/layby

.PHONY: test
test: test-rust test-python test-django test-package test-examples test-docs test-deploy test-e2e ## Every test
	@echo "== all tests passed"

.PHONY: test-rust
test-rust: python postgresql clients ## Unit, property, golden-file and integration tests of the gateway
	@echo "== gateway"
	cargo test --locked

.PHONY: test-python
test-python: python postgresql ## The worker package without Django, and its greenlet mode
	@echo "== worker package"
	cd python && $(PYTEST) tests/core tests/transports
	@# Apart, because greenlet mode sets Django up for a whole process.
	cd python && $(PYTEST) tests/greenlet

.PHONY: test-django
test-django: python postgresql ## The worker package with Django
	@echo "== worker package with Django"
	cd python && $(PYTEST) tests/django

.PHONY: test-package
test-package: python debug ## What is published of the worker package, built and installed
	@echo "== package"
	cd python && $(PYTEST) tests/package

.PHONY: test-examples
test-examples: python ## The example shop, its services and its runner
	@echo "== examples"
	cd examples && $(PYTEST) tests
	cd examples/shop && $(CURDIR)/$(PY) manage.py test

.PHONY: test-docs
test-docs: python debug ## What the documents say, tried out
	@echo "== documents"
	$(PYTEST) tests/docs

.PHONY: test-deploy
test-deploy: python postgresql prometheus deployers debug ## What is in deploy/, with the tools of its field
	@echo "== deploy"
	cd tests/deploy && $(PYTEST)

# Not among `make test`: they compile everything once more, and install whole systems.
.PHONY: test-ship
test-ship: archive image ## Archive, image and cargo install, on machines with nothing else, as root; slow
	@scripts/need "util-linux and binutils" unshare=util-linux readelf=binutils
	cd tests/ship && $(PYTEST)

.PHONY: walkthrough
walkthrough: wheel ## docs/install.md on a fresh Debian, as it is written down; slow
	@scripts/need "bubblewrap and mmdebstrap" bwrap=bubblewrap mmdebstrap=mmdebstrap
	$(PY) scripts/walkthrough.py dist/layby-$(VERSION)-py3-none-*linux*.whl

.PHONY: test-e2e
test-e2e: python postgresql prometheus clients slowhttptest node chromium debug ## The real binary with real Django on real PostgreSQL
	@echo "== end to end"
	cd tests/e2e && $(PYTEST)

.PHONY: screenshots
screenshots: python postgresql chromium pngquant debug ## The pictures of the status page in docs/images, taken anew
	cd tests/e2e && $(PYTEST) screenshots.py

.PHONY: drill
drill: python postgresql release ## Break everything under load, check every request; DRILL="SIGKILL disk" for a part
	@LAYBY_BINARY=$(abspath $(TARGET))/release/layby exec $(PY) tests/drill/run.py $(DRILL)

.PHONY: alerts
alerts: python postgresql prometheus clients release ## One fault for each alert, under load; writes what fired; ALERTS="Spool" for a part
	@LAYBY_BINARY=$(abspath $(TARGET))/release/layby exec $(PY) tests/drill/alerts.py --write $(ALERTS)

.PHONY: test-matrix
test-matrix: ## The package with every supported Python, Django, asgiref and Flask; slow
	sh python/tests/matrix.sh

# Checks -------------------------------------------------------------------------------------

.PHONY: check
check: check-rust check-python check-docs check-deps ## Format, lints, types, documents, dependencies
	@echo "== all checks passed"

# Crates beside the gateway's own; each is a workspace of its own.
OTHER_CRATES := $(wildcard fuzz/Cargo.toml benches/load/Cargo.toml)

.PHONY: check-rust
check-rust:
	@echo "== rustfmt, clippy, rustdoc"
	cargo fmt --check
	$(foreach crate,$(OTHER_CRATES),cargo fmt --check --manifest-path $(crate) &&) true
	cargo clippy --locked --all-targets -- -D warnings
	@# The bans of clippy.toml are for the gateway; its tests may sleep.
	cargo clippy --locked --lib --bins -- -D warnings -D clippy::disallowed_methods
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

.PHONY: check-python
check-python: python
	@echo "== ruff, mypy, pip"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --config-file python/pyproject.toml python/src
	$(PY) -m pip check

.PHONY: check-docs
check-docs: python
	@echo "== links between documents, and the site"
	$(PYTEST) tests/docs/test_links.py
	$(MAKE) docs

.PHONY: check-deps
check-deps: $(DENY)-$(DENY_VERSION)
	@echo "== dependencies"
	$(DENY) --locked check bans licenses sources

# Set-up -------------------------------------------------------------------------------------

.PHONY: python
python:
	@scripts/python-env

.PHONY: postgresql
postgresql:
	@scripts/need-postgresql

.PHONY: prometheus clients node slowhttptest proxies deployers chromium pngquant
prometheus:
	@scripts/need "Prometheus and promtool" prometheus=prometheus promtool=prometheus
clients: # Second opinions on TLS and HTTP/2.
	@scripts/need "openssl and h2load" openssl=openssl h2load=nghttp2-client
node:
	@scripts/need "Node, as a server to proxy to" node=nodejs
deployers:
	@scripts/need "the tools of what is deployed" nginx=nginx-light systemd-analyze=systemd \
		docker-compose=docker-compose kubectl=kubernetes-client openssl=openssl
slowhttptest:
	@scripts/need slowhttptest slowhttptest=slowhttptest
pngquant:
	@scripts/need "pngquant, to make pictures small" pngquant=pngquant
chromium:
	@scripts/need "Chromium, to look at the status page" chromium=chromium
proxies: # For `make bench` alone.
	@scripts/need "nginx and haproxy, to measure against" nginx=nginx haproxy=haproxy

.PHONY: debug release
debug:
	cargo build --locked
release:
	cargo build --locked --release

$(DENY)-$(DENY_VERSION):
	@# A debug build: cargo-deny runs for a second, and its release build takes minutes.
	cargo install cargo-deny --version $(DENY_VERSION) --locked --debug --root .tools --target-dir .tools/target
	rm -rf .tools/target
	touch $@

.PHONY: clean
clean: ## Remove everything that make has made
	rm -rf $(TARGET) .venv .tools .run dist site fuzz/target benches/load/target
	rm -rf .ruff_cache .mypy_cache python/.mypy_cache python/src/*.egg-info
	find python examples benches tests \( -name __pycache__ -o -name .pytest_cache \) -prune -exec rm -rf {} +
