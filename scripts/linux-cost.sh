#!/usr/bin/env bash
# Prints what Rampart costs Debian's Linux until its first process runs, beside no hypervisor and beside protected KVM:
# the table of docs/performance.md.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
"$scripts/setup.sh"
"$scripts/setup.sh" --linux
exec cargo run --quiet --locked --manifest-path "${scripts%/*}/Cargo.toml" -p boot-tests --bin linux-cost
