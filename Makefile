# All need a Rust toolchain and a Debian-like machine; what else they need, they install.
.PHONY: test test-modules test-resident test-faults test-package test-service test-canary test-abuse soak demo bench bench-custody fuzz deb sbom deny \
	prerequisites

test: prerequisites
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --locked
	@./tests/modules/install-packages nss
	HSM_AUTHD_TEST_MODULE=nss cargo test --locked --test suite -- $(ON_NSS)

# What `make test` does on NSS as well: the custodian, its setup and what a module lacks. The rest is make test-modules.
ON_NSS = custodian:: setup:: module_lacks::

# The integration tests with secrets that are objects in the HSM, where a test does not say otherwise.
test-resident: prerequisites
	HSM_AUTHD_TEST_CUSTODY=resident cargo test --locked --test suite

# The integration tests on other PKCS#11 modules, and that modules which cannot serve are refused (docs/hsm-modules.md).
# What a module cannot do for a test is told ("passed over on ..."); whatever fails, all of it is run.
MODULES = kryoptic nss

test-modules: prerequisites
	@./tests/modules/install-packages
	cd tests/modules/kryoptic && cargo build --release --locked -p kryoptic --target-dir $(CURDIR)/target/kryoptic
	failed=; for module in $(MODULES); do \
		HSM_AUTHD_TEST_MODULE=$$module cargo test --locked --test suite || failed="$$failed $$module"; \
	done; \
	cargo test --locked --test suite -- --ignored --test-threads 1 --nocapture refused_because \
		|| failed="$$failed refused"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

# Every function of the HSM failing in every way in every step of every story, and an HSM that flaps for a minute: an hour
# and a half on 4 cores. FAULT_MINUTES bounds it, FAULT_CELL=C_Sign/bit has only those cells done; FAULT_DONE, a file with what
# an earlier run printed, goes on where that one ended.
FAULT_MINUTES = 120
FAULT_WORKERS = 12
FAULT_CELL =
FAULT_DONE =

test-faults: prerequisites
	HSM_AUTHD_FAULT_TABLE=full HSM_AUTHD_FAULT_MINUTES=$(FAULT_MINUTES) HSM_AUTHD_FAULT_WORKERS=$(FAULT_WORKERS) \
		$(if $(FAULT_CELL),HSM_AUTHD_FAULT_CELL="$(FAULT_CELL)") $(if $(FAULT_DONE),HSM_AUTHD_FAULT_DONE="$(FAULT_DONE)") \
		HSM_AUTHD_FLAPPING_SECONDS=60 cargo test --locked --test suite -- --nocapture --test-threads 1 \
		fault_table:: flapping:: gone_tokens::

# A million unwraps through the whole appliance, custodians replaced all the time, and the memory of all processes.
SOAK_UNWRAPS = 1000000

soak: prerequisites
	HSM_AUTHD_SOAK_UNWRAPS=$(SOAK_UNWRAPS) timeout 3600 \
		cargo test --release --locked --test suite -- soak:: --nocapture

# Every secret of so many requests, looked for in every file, every output and all memory. As root; others see no memory.
CANARY_OPERATIONS = 10000

test-canary: prerequisites
	HSM_AUTHD_CANARY_OPERATIONS=$(CANARY_OPERATIONS) \
		cargo test --locked --test suite -- --nocapture --test-threads 1 canary:: needles::

# Peers by thousands that dribble, say nothing or flood, and testssl.sh: about a quarter of an hour, over loopback.
test-abuse: prerequisites
	@./softhsm-setup/install-packages testssl=testssl.sh prlimit=util-linux
	HSM_AUTHD_ABUSE=full cargo test --release --locked --test suite -- --nocapture --test-threads 1 abuse::
	cargo build --release --locked
	tests/service/testssl.sh target/release/hsm-authd

demo: prerequisites
	cargo build --release --locked --bins --examples
	target/release/examples/demo target/release/hsm-authd

# BENCH=--quick for a short run, BENCH=--help for the rest.
bench: prerequisites
	cargo bench --locked --bench verification -- $(BENCH)

# Secrets as objects in the HSM against wrapped ones (docs/custody.md); about ten minutes, most of them to make the objects.
bench-custody: prerequisites
	cargo bench --locked --bench custody -- $(BENCH)

# libFuzzer needs a C++ compiler as well. What it finds is in fuzz/artifacts/.
FUZZ_SECONDS = 60
FUZZ_TARGETS = $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))

fuzz: prerequisites
	cargo install cargo-fuzz --version 0.13.2 --locked --quiet --root target/tools
	cp Cargo.lock fuzz/Cargo.lock # the versions that are shipped
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target; \
		PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo fuzz run --sanitizer none --target-dir target/fuzz \
			$$target target/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -print_final_stats=1; \
	done

# Tools of the Rust ecosystem, at the versions that this was made with, under target/ and nowhere else.
TOOL = cargo install --locked --quiet --root target/tools --version
TOOLS_PATH = PATH="$(CURDIR)/target/tools/bin:$$PATH"

# The Debian package, in target/debian/, and what Debian's own checker says of it. DEB="--deb-version 0.2.0-1" for another
# version than Cargo.toml's. Built on the oldest Debian that it is to run on: it needs that libc or a newer one.
DEB =

deb:
	@./softhsm-setup/install-packages dpkg-shlibdeps=dpkg-dev lintian=lintian
	$(TOOL) 3.8.0 cargo-deb
	rm -rf target/manual
	cargo run --locked --quiet --example manual -- target/manual
	.ci/third-party
	set -e; deb=$$($(TOOLS_PATH) cargo deb --locked $(DEB)); echo "$$deb"; lintian --fail-on error,warning "$$deb"

# Installs, upgrades, removes and purges the package of `make deb` in a Debian of its own, and looks at what is there and what
# is left. As root, on Debian. SUITES=bookworm for that one alone.
SUITES = bookworm trixie

test-package: deb
	@./softhsm-setup/install-packages mmdebstrap=mmdebstrap
	set -e; for suite in $(SUITES); do tests/service/package.sh $$suite; done

# The service on a booted systemd: set up by docs/operating.md, word for word, then upgraded, reloaded, killed, stalled, attacked
# from inside and purged. As root, on Debian.
test-service: deb
	@./softhsm-setup/install-packages mmdebstrap=mmdebstrap systemd-nspawn=systemd-container
	set -e; for suite in $(SUITES); do tests/service/service.sh $$suite; done

# What the shipped binary is made of, for those who have to know: target/sbom/hsm-authd.cdx.json.
sbom:
	@./softhsm-setup/install-packages
	$(TOOL) 0.5.9 cargo-cyclonedx
	.ci/sbom

# Licences, doubled crates, sources and known holes, by deny.toml. The first three need no network.
deny:
	$(TOOL) 0.20.2 cargo-deny
	$(TOOLS_PATH) cargo deny --workspace check licenses bans sources
	$(TOOLS_PATH) cargo deny fetch db || { echo "the database of advisories cannot be had: not asked" >&2; exit 0; }; \
		$(TOOLS_PATH) cargo deny --workspace check advisories

prerequisites:
	@./softhsm-setup/install-packages
