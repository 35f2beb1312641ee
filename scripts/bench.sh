#!/usr/bin/env bash
# Counts the instructions of EL2 that each operation takes, beside those of Linux's protected KVM on the same emulated
# CPU: docs/performance.md. --help lists the options.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
"$scripts/setup.sh"
exec cargo run --quiet --locked --manifest-path "${scripts%/*}/Cargo.toml" -p bench -- "$@"
