# `make demo` shows it, `make test` checks it. Everything is built by cargo; this file only says which commands belong together.

SHELL := /bin/sh
CARGO ?= cargo
# Minutes that `make soak` goes on, and cycles of kills at random that it begins with.
SOAK_MINUTES ?= 30
SOAK_CYCLES ?= 200
# Seconds that `make fuzz` gives to each target.
FUZZ_SECONDS ?= 60

RUST_VERSION := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
# The version that follows this one: what the lab upgrades to.
NEXT_VERSION := $(shell awk -F '[".]' '/^version = / { print $$2 "." $$3 + 1 ".0"; exit }' Cargo.toml)

.PHONY: help build demo test lab-test lint bench soak fuzz units packages next-packages lint-packages packages-twice tools fault-tools fuzz-tools lab-tools

help:
	@echo 'make demo   a fleet of three minions on this machine: a call, a job, a kill -9, and the result all the same'
	@echo 'make test   every test'
	@echo 'make build  both programs, optimised: target/release/overlord and target/release/minion'
	@echo 'make lint   format, clippy, dependencies, systemd units'
	@echo 'make packages        .deb and .rpm of both programs in target/packages; ARCH=arm64 for that'
	@echo 'make lint-packages   what lintian and rpmlint say of them'
	@echo 'make packages-twice  builds them again elsewhere, and compares them'
	@echo 'make lab-test        installs them on real Debian hosts that boot, crash and are cut off; needs root'
	@echo 'make bench  the figures, as ratios'
	@echo 'make fuzz   every parser, FUZZ_SECONDS=$(FUZZ_SECONDS) seconds each family; what is found lies in tests/fuzz/artifacts'
	@echo 'make soak   SOAK_CYCLES=$(SOAK_CYCLES) cycles of kills at random, make fuzz, make packages-twice, then the tests again and again for SOAK_MINUTES=$(SOAK_MINUTES) minutes'

build: tools
	$(CARGO) build --release --locked -p overlord -p minion

demo: tools
	tests/demo.sh

test: tools fault-tools
	$(CARGO) build --locked -p overlord -p minion -p pages --bins --examples
	$(CARGO) test --workspace --locked

# Real hosts, on which the packages of target/packages are installed, and those of the next version in target/packages/next. LAB_PACKAGES=DIR names a
# folder with others. Most of the time hosts wait for each other, so there are more labs at once than cores. The root of the hosts is made once and kept in /var/tmp/overlord-lab, or what LAB_CACHE names.
lab-test: tools lab-tools $(if $(LAB_PACKAGES),,next-packages)
	$(CARGO) test --locked -p fleet --test lab -- --test-threads=4

lint: tools units
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo 'make: cargo-deny is missing: cargo install cargo-deny --locked' >&2; exit 1; }
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p fleet --test lab --locked -- -D warnings
	$(CARGO) deny --locked check bans licenses sources

packages: tools
	packaging/build $(if $(ARCH),--arch $(ARCH)) $(if $(VERSION),--version $(VERSION))

next-packages: packages
	packaging/build --version $(NEXT_VERSION) --out target/packages/next

lint-packages:
	packaging/lint

packages-twice: packages
	packaging/twice

bench: tools
	$(CARGO) build --release --locked -p overlord -p minion --bins
	$(CARGO) bench --locked -p fleet

soak: tools fault-tools fuzz-tools
	FLEET_CYCLES=$(SOAK_CYCLES) $(CARGO) test --locked -p fleet --test it -- --nocapture cycles_of_kills
	$(MAKE) --no-print-directory fuzz
	$(MAKE) --no-print-directory packages-twice
	@end=$$(($$(date +%s) + $(SOAK_MINUTES) * 60)); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	    round=$$((round + 1)); echo "soak: round $$round"; \
	    $(CARGO) test --quiet --locked -p fleet || { echo "soak: round $$round failed" >&2; exit 1; }; \
	done

# cargo-fuzz asks for a sanitizer, which stable Rust has and gives to whoever sets RUSTC_BOOTSTRAP. What libFuzzer comes to and the corpora have
# not lies in tests/fuzz/target/grown, where the next run goes on; `cargo fuzz cmin` takes what is worth it from there.
fuzz: tools fuzz-tools
	@for target in $$(ls tests/fuzz/targets | sed 's/\.rs$$//'); do \
	    echo "fuzz: $$target, $(FUZZ_SECONDS) s"; grown=tests/fuzz/target/grown/$$target; mkdir -p $$grown; \
	    RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir tests/fuzz $$target $$grown tests/fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 -print_funcs=0 \
	        || { echo "fuzz: $$target failed; once it is mended, put what it failed on into tests/fuzz/corpus/$$target" >&2; exit 1; }; \
	done

# Units that listen to a network may not be exposed more than this, in tenths, by what `systemd-analyze security` says.
EXPOSURE_MAX := 30

# systemd-analyze exits 0 on keys it does not know: any output is a failure. Where there is no systemd there is nothing to check.
units:
	@command -v systemd-analyze >/dev/null || { echo 'units: no systemd-analyze here, not checked'; exit 0; }; \
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	for unit in packaging/*.service; do sed -E 's,/usr/bin/(minion|overlord),/bin/true,' $$unit > $$dir/$${unit##*/}; done && \
	said=$$(systemd-analyze --man=no verify $$dir/*.service 2>&1) && [ -z "$$said" ] || { echo "units: $$said" >&2; exit 1; }; \
	for unit in minion overlord-certs; do \
	    said=$$(systemd-analyze security --offline=yes --no-pager --threshold=$(EXPOSURE_MAX) packaging/$$unit.service 2>&1) || \
	        { echo "$$said" >&2; echo "units: $$unit.service is exposed more than $(EXPOSURE_MAX) tenths" >&2; exit 1; }; \
	    echo "units: $$(echo "$$said" | tail -n 1 | sed 's/[^ -~]*//g')"; \
	done

# What is missing is named, with the command that installs it.
tools:
	@missing() { echo "make: $$1 is missing. Debian: $$2   Fedora: $$3" >&2; exit 1; }; \
	command -v bash >/dev/null || missing bash 'sudo apt-get install -y bash' 'sudo dnf install -y bash'; \
	command -v script >/dev/null || missing script 'sudo apt-get install -y bsdutils' 'sudo dnf install -y util-linux-script'; \
	command -v cc >/dev/null || missing cc 'sudo apt-get install -y gcc libc6-dev' 'sudo dnf install -y gcc'; \
	command -v $(CARGO) >/dev/null || missing cargo \
	    "sudo apt-get install -y curl && curl -sSf https://sh.rustup.rs | sh -s -- -y && . ~/.cargo/env" 'sudo dnf install -y cargo'; \
	have=$$($(CARGO) --version | cut -d' ' -f2); \
	oldest=$$(printf '%s\n%s\n' "$(RUST_VERSION)" "$$have" | sort -V | head -n 1); \
	[ "$$oldest" = "$(RUST_VERSION)" ] || { \
	    echo "make: cargo $$have is too old, $(RUST_VERSION) is needed: rustup update stable (without rustup: https://rustup.rs)" >&2; exit 1; }

# What the tests inject faults with.
fault-tools:
	@PATH=$$PATH:/usr/sbin:/sbin; \
	missing() { echo "make: $$1 is missing, which tests inject faults with. Debian: sudo apt-get install -y $$2   Fedora: sudo dnf install -y $$3" >&2; exit 1; }; \
	command -v strace >/dev/null || missing strace strace strace; \
	command -v faketime >/dev/null || missing faketime faketime libfaketime; \
	command -v ip >/dev/null || missing ip iproute2 iproute; \
	command -v unshare >/dev/null || missing unshare util-linux util-linux; \
	command -v nsenter >/dev/null || missing nsenter util-linux util-linux-core; \
	command -v prlimit >/dev/null || missing prlimit util-linux util-linux-core; \
	command -v openssl >/dev/null || missing openssl openssl openssl

# What hosts are made of and booted with.
lab-tools:
	@[ "$$(id -u)" = 0 ] || { echo 'make: hosts that boot need root: sudo make lab-test' >&2; exit 1; }; \
	PATH=$$PATH:/usr/sbin:/sbin; \
	missing() { echo "make: $$1 is missing, which the hosts of the lab need. Debian: sudo apt-get install -y $$2" >&2; exit 1; }; \
	command -v apt-get >/dev/null || { echo 'make: the hosts of the lab are made of what apt gets: run it on Debian' >&2; exit 1; }; \
	command -v debootstrap >/dev/null || missing debootstrap debootstrap; \
	command -v systemd-nspawn >/dev/null || missing systemd-nspawn systemd-container; \
	command -v ip >/dev/null || missing ip iproute2; \
	command -v setsid >/dev/null || missing setsid util-linux

# What parsers are fuzzed with.
fuzz-tools:
	@missing() { echo "make: $$1 is missing, which parsers are fuzzed with. $$2" >&2; exit 1; }; \
	command -v c++ >/dev/null || missing c++ 'Debian: sudo apt-get install -y g++   Fedora: sudo dnf install -y gcc-c++'; \
	$(CARGO) fuzz --version >/dev/null 2>&1 || missing cargo-fuzz 'cargo install cargo-fuzz --locked'; \
	ls $$(rustc --print sysroot)/lib/rustlib/*/lib/librustc*_rt.asan.a >/dev/null 2>&1 \
	    || missing "the address sanitizer of $$(rustc --version)" 'Toolchains of https://rustup.rs have it'
