# `make` alone prints this file's targets. GNU make 3.81 (macOS) is enough.
PYTHON ?= python3
SECONDS_PER_TARGET ?= 600
export PYTHON

.DEFAULT_GOAL := help
.PHONY: api help demo test test-files check kotlin mobile bench model flower golden fuzz

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## build, fetch the default model once, answer, swap adapters, train a few steps (PROMPT="...", TOKENS=96, QUICK=1)
	@.ci/demo

test: model ## run every test, Kotlin's too, and say what could not be run here
	@.ci/summary sh -c 'cargo test --release --workspace && .ci/kotlin'
	cargo build --release --quiet --workspace --example session
	"$${CARGO_TARGET_DIR:-target}/release/examples/session"

kotlin: model ## test the Kotlin library on a JVM, where there are a JDK and Maven (EPIPHYTE_OVERHEAD=1 also times it)
	@.ci/summary .ci/kotlin

test-files: ## lint and test the library without a GPU: what reads and writes files
	! cargo tree -p epiphyte --no-default-features -e normal --prefix none | grep '^wgpu'
	cargo clippy --release -p epiphyte --no-default-features --all-targets -- -D warnings
	cargo test --release -p epiphyte --no-default-features --test main

check: ## what CI runs: format, lints, tests, documentation
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo clippy --release -p epiphyte-cli --all-targets -- -D warnings
	@$(MAKE) test
	@$(MAKE) test-files
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps
	@$(PYTHON) .ci/api.py --check
	cargo package --quiet --no-verify --allow-dirty -p epiphyte

mobile: model ## test for phones: Metal's shaders, Kotlin, Swift, Android, iOS, arm64; says what can't be run here (an hour and more, cold)
	@.ci/mobile

api: ## pin the public API as it is now
	rm -rf $${CARGO_TARGET_DIR:-target}/doc/epiphyte
	cargo doc --release --quiet -p epiphyte --no-deps
	@$(PYTHON) .ci/api.py

bench: model ## time prompt and decode on the default model
	cargo run --release --quiet -- bench

model: ## fetch a model into the cache, once (MODEL=smollm2, the default, or gemma: Gemma 3 270M)
	@$(PYTHON) .ci/fetch_model.py $(MODEL)

flower: ## average by way of Flower (FLWR=1.40.0) and Dask, which it installs into the cache folder
	@.ci/flower

golden: model ## make the golden data again (needs numpy, gguf and Node; see tests/golden/README.md)
	$(MAKE) -C tests/golden MODEL="$$($(PYTHON) .ci/fetch_model.py --check)"

fuzz: ## fuzz each file parser (SECONDS_PER_TARGET=600; needs nightly Rust and cargo-fuzz)
	@for target in $$(cargo +nightly fuzz list); do \
	    mkdir -p fuzz/corpus/$$target; seeds=fuzz/seeds/$$target; options=; \
	    test -f $$seeds.dict && options="-dict=$$seeds.dict"; \
	    test $$target = gguf && options="$$options -max_len=32768"; \
	    test -d $$seeds || seeds=; \
	    cargo +nightly fuzz run $$target fuzz/corpus/$$target $$seeds -- $$options \
	        -max_total_time=$(SECONDS_PER_TARGET) || exit 1; \
	done
