#!/usr/bin/env bash
# Fetches the peer's kernel and builds the program that measures it: target/linux/kvm-bench.
# Silent where nothing is to be done; the status is 1, with a reason, where it cannot be built.
set -euo pipefail

root=$(cd -- "${BASH_SOURCE[0]%/*}/../.." && pwd)
"$root/scripts/setup.sh" --peer
readonly target=aarch64-unknown-linux-musl
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld cargo build --quiet --locked --release --target $target \
    --config 'profile.release.debug="none"' --config 'profile.release.strip="symbols"' \
    --manifest-path "$root/Cargo.toml" --target-dir "$root/target" -p kvm-bench
cp -pu "$root/target/$target/release/kvm-bench" "$root/target/linux/kvm-bench"
