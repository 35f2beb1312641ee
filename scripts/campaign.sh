#!/usr/bin/env bash
# Random calls against the specification, the checker and the audit: first on the simulated machine, then under QEMU,
# where 4 CPUs race on an image that judges each of its own calls; then snapshots whose descriptor and chain other CPUs
# rewrite, lend and share meanwhile, on both. Exit status 0 means that there was no difference.
#
#   RAMPART_SEED         what the calls depend on; by default the time. It is printed, and repeats the calls of each CPU.
#   RAMPART_CALLS        calls on the simulated machine, 1000000 by default; 0 leaves that half out.
#   RAMPART_QEMU_CALLS   calls under QEMU, 50000 by default; 0 leaves that half out.
#   RAMPART_ROUNDS       rounds of each of the races, 10000 by default; 0 leaves them out.
#   RAMPART_GUEST_CALLS  random register sets of a realm's calls, 1000000 by default; 0 leaves them out.
#   RAMPART_CPU          QEMU's CPU model, max by default.
#   RAMPART_SECONDS      time limit of each run under QEMU, 7200 by default.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."
seed=${RAMPART_SEED:-$(date +%s)} calls=${RAMPART_CALLS:-1000000} qemu_calls=${RAMPART_QEMU_CALLS:-50000}
cpu=${RAMPART_CPU:-max} seconds=${RAMPART_SECONDS:-7200} rounds=${RAMPART_ROUNDS:-10000}
guest_calls=${RAMPART_GUEST_CALLS:-1000000}
"$scripts/setup.sh"
printf 'campaign: seed %s, %s calls on the simulated machine, %s under QEMU (%s), %s snapshots\n' \
    "$seed" "$calls" "$qemu_calls" "$cpu" "$rounds"

if ((calls > 0)); then
    cargo run --quiet --locked --release -p testkit --bin campaign -- --calls "$calls" --seed "$seed"
fi
if ((qemu_calls > 0)); then
    # Little RAM: the specification looks at every page after every call.
    cargo run --quiet --locked -p xtask -- boot --verbose --features hyp/spec,hyp/fault-injection --cpu "$cpu" --smp 4 \
        --mem 160M --scenario campaign --append "seed=$seed calls=$qemu_calls every=1000" --timeout "$seconds"
fi
if ((guest_calls > 0)); then
    GUEST_CALL_ROUNDS=$guest_calls cargo test --quiet --locked --release -p hyp --test guest -- p_17
fi
if ((rounds > 0)); then
    RACE_ROUNDS=$rounds cargo test --quiet --locked --release -p hyp --test guest -- r_04
    RACE_ROUNDS=$rounds cargo test --quiet --locked --release -p hyp --test snapshot_race
    cargo run --quiet --locked -p xtask -- boot --features hyp/fault-injection,hyp/debug-snapshot --cpu "$cpu" --smp 4 \
        --mem 256M --scenario snapshot --append "rounds=$rounds" --timeout "$seconds"
fi
printf 'campaign: no difference, seed %s\n' "$seed"
