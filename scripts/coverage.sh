#!/usr/bin/env bash
# Lines of the portable core that the tests of `hyp` run, file by file; docs/coverage.md. Exit status 3: the compiler's
# llvm-profdata and llvm-cov are missing, and could not be added.
#
#   scripts/coverage.sh [--write] [WORD...]
#
# --write: the table of docs/coverage.md is made anew. Words are passed on to `cargo test`. target/coverage/lines.txt has
# every source line with how often it ran.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."
write=
if [[ ${1-} == --write ]]; then write=1 && shift; fi
host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
readonly write host tools
if [[ ! -x $tools/llvm-profdata || ! -x $tools/llvm-cov ]]; then
    timeout 300 rustup component add llvm-tools >/dev/null 2>&1 || true
fi
if [[ ! -x $tools/llvm-profdata || ! -x $tools/llvm-cov ]]; then
    printf 'coverage: NOT RUN, %s has no llvm-profdata and llvm-cov: rustup component add llvm-tools\n' "$tools" >&2
    exit 3
fi

# Counters go into the crates of this workspace alone: the others are built, or there already, as for any test.
readonly out=$PWD/target/coverage
rm -rf -- "$out"
mkdir -p -- "$out/raw"
printf '#!/bin/sh\nexec "$@" -C instrument-coverage\n' >"$out/rustc"
chmod +x -- "$out/rustc"
export RUSTC_WORKSPACE_WRAPPER=$out/rustc
# The compiler loads crates with counters too (macros): what it writes is not wanted.
export LLVM_PROFILE_FILE=/dev/null
mapfile -t programs < <(cargo test --quiet --locked -p hyp --no-run --message-format=json "$@" |
    sed -nE 's/.*"executable":"([^"]+)".*/\1/p')
LLVM_PROFILE_FILE=$out/raw/%p-%m.profraw cargo test --quiet --locked -p hyp --no-fail-fast "$@"
"$tools/llvm-profdata" merge --sparse "$out"/raw/*.profraw -o "$out/all.profdata"
objects=()
for program in "${programs[@]:1}"; do
    objects+=(--object "$program")
done
readonly of=(--instr-profile "$out/all.profdata" "${programs[0]}" "${objects[@]}"
    --ignore-filename-regex '/(\.cargo|rustc)/|/tests/|/testkit/|/abi/')
"$tools/llvm-cov" show "${of[@]}" >"$out/lines.txt"
"$tools/llvm-cov" export --summary-only "${of[@]}" >"$out/report.json"
"$tools/llvm-cov" report "${of[@]}"
if [[ $write ]]; then
    env -u RUSTC_WORKSPACE_WRAPPER cargo run --quiet --locked -p xtask -- lines "$out/report.json"
fi
