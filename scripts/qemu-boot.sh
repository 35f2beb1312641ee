#!/usr/bin/env bash
# Boots Rampart under QEMU. Without options: the demo on 4 CPUs, then the cost figures. --host linux: Debian's
# unmodified Linux as the host; --guest linux: the same Linux as a guest. --help lists the options.
# Exit status 0 means that every check held and the machine came to an orderly end.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
root=${scripts%/*}
"$scripts/setup.sh"
case " $* " in
*" --host linux "* | *" --host=linux "* | *" --guest linux "* | *" --guest=linux "*) "$scripts/setup.sh" --linux ;;
esac
[[ -x ${CARGO_TARGET_DIR:-$root/target}/debug/xtask ]] || echo "building the tools" >&2
exec cargo run --quiet --locked --manifest-path "$root/Cargo.toml" -p xtask -- boot "$@"
