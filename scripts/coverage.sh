#!/usr/bin/env bash
# Lines of the portable core that the tests of `hyp` run, module by module; docs/coverage.md. Words are passed on to
# `cargo test`. Exit status 3: the compiler's llvm-profdata and llvm-cov are missing, and could not be added.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."
host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
readonly host tools
if [[ ! -x $tools/llvm-profdata || ! -x $tools/llvm-cov ]]; then
    timeout 300 rustup component add llvm-tools >/dev/null 2>&1 || true
fi
if [[ ! -x $tools/llvm-profdata || ! -x $tools/llvm-cov ]]; then
    printf 'coverage: NOT RUN, %s has no llvm-profdata and llvm-cov: rustup component add llvm-tools\n' "$tools" >&2
    exit 3
fi

# A build folder of its own: the counters are in every crate.
readonly out=target/coverage
rm -rf -- "$out/raw"
mkdir -p -- "$out/raw"
export CARGO_TARGET_DIR=$out RUSTFLAGS="${RUSTFLAGS-} -C instrument-coverage" LLVM_PROFILE_FILE="$PWD/$out/raw/%p-%m.profraw"
cargo test --quiet --locked -p hyp --no-fail-fast "$@"
mapfile -t programs < <(cargo test --quiet --locked -p hyp --no-run --message-format=json "$@" |
    sed -nE 's/.*"executable":"([^"]+)".*/\1/p')
"$tools/llvm-profdata" merge --sparse "$out"/raw/*.profraw -o "$out/all.profdata"
objects=()
for program in "${programs[@]:1}"; do
    objects+=(--object "$program")
done
"$tools/llvm-cov" report --instr-profile "$out/all.profdata" "${programs[0]}" "${objects[@]}" \
    --ignore-filename-regex '/(\.cargo|rustc)/|/tests/|/testkit/|/abi/' | tee "$out/report.txt"
