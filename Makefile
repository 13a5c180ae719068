# Both need a Rust toolchain and a Debian-like machine; what else they need, they install.
.PHONY: test demo prerequisites

test: prerequisites
	cargo fmt --all --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo test --locked

demo: prerequisites
	cargo build --release --locked --bins --examples
	target/release/examples/demo target/release/hsm-authd

prerequisites:
	@./softhsm-setup/install-packages
