#!/usr/bin/env bash
# Hostile hosts, for as long as you like; docs/testing.md, "The campaign". Exit status 0 means that nothing failed.
#
#   scripts/campaign.sh [--minutes N] [--seed S] [--cpu C] [--json]   boots under QEMU, one after the other
#   scripts/campaign.sh --simulated [--calls N] [--seed S]            calls on the simulated machine
#   scripts/campaign.sh --races [--rounds N] [--cpu C]                the races of P-17, R-04, S-10 and S-11, N times each
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."

case ${1-} in
--simulated)
    shift
    exec cargo run --quiet --locked --release -p testkit --bin campaign -- "$@"
    ;;
--races)
    shift
    ;;
*)
    "$scripts/setup.sh"
    exec cargo run --quiet --locked -p xtask -- campaign "$@"
    ;;
esac

rounds=10000 cpu=max
while (($# > 0)); do
    case $1 in
    --rounds) rounds=$2 ;;
    --cpu) cpu=$2 ;;
    *) printf 'campaign: no option %s of --races\n' "$1" >&2 && exit 2 ;;
    esac
    shift 2
done
"$scripts/setup.sh"
GUEST_CALL_ROUNDS=$((rounds * 100)) cargo test --quiet --locked --release -p hyp --test guest -- p_17
RACE_ROUNDS=$rounds cargo test --quiet --locked --release -p hyp --test guest -- r_04
RACE_ROUNDS=$rounds cargo test --quiet --locked --release -p hyp --test snapshot_race
cargo run --quiet --locked -p xtask -- boot --features hyp/fault-injection,hyp/debug-snapshot --cpu "$cpu" --smp 4 \
    --mem 256M --scenario snapshot --append "rounds=$rounds" --timeout 7200
printf 'campaign: no race was lost, %s rounds\n' "$rounds"
