#!/usr/bin/env bash
# Prints what Rampart costs Debian's Linux, beside no hypervisor and beside protected KVM: time until the first process
# runs, and memory. The tables of docs/performance.md. --carve-out: the second alone, which takes a minute.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
"$scripts/setup.sh"
"$scripts/setup.sh" --linux
exec cargo run --quiet --locked --manifest-path "${scripts%/*}/Cargo.toml" -p boot-tests --bin linux-cost -- "$@"
