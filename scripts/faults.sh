#!/usr/bin/env bash
# Boots scenarios with the word `faults`: every pass of every step of EL2 that can fail fails once, and the scenario must
# pass all the same. Prints which step failed in which call how often. Exit status 0 means that all of them passed.
#
#   scripts/faults.sh [--cpu MODEL] [--mem SIZE] [--audits N] [--seed N] [--timeout SECONDS] [SCENARIO...]
#
# Without names: all scenarios but those that arm sites themselves, measure, or need another machine. --audits: calls of
# each kind between two audits, 3. --seed: of scenarios that call at random, 1. --timeout: of each boot, 300.
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."
cpu=max mem=320M audits=3 seed=1 timeout=300
while [[ ${1-} == --* ]]; do
    case $1 in
    --cpu | --mem | --audits | --seed | --timeout) declare "${1#--}=${2:?$1 needs a value}" ;;
    *) sed -n '2,/^set/{/^#/p}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
    esac
    shift 2
done
scenarios=("$@")
if ((${#scenarios[@]} == 0)); then
    # Not snapshot: its calls race with others, and whose a failure is cannot be told. Scenario faults has snapshots of its own.
    scenarios=(demo smoke calls share lend psci smp race guard guest_hello guest_memory guest_share guest_realm
        guest_smp guest_timer guest_fp guest_keys guest_mte guest_two_vms guest_traps guest_protect guest_vcpu
        guest_handles guest_replies guest_donate guest_race guest_kill)
fi
"$scripts/setup.sh"
logs=target/faults/$cpu
mkdir -p "$logs"
failed=() n=0
for scenario in "${scenarios[@]}"; do
    n=$((n + 1))
    log=$logs/$scenario.log
    began=$SECONDS
    if cargo run --quiet --locked -p xtask -- boot --verbose --features hyp/fault-injection,hyp/debug-snapshot \
        --cpu "$cpu" --mem "$mem" --scenario "$scenario" --append "faults audits=$audits seed=$seed" \
        --timeout "$timeout" >"$log" 2>&1; then
        verdict=passed
    else
        verdict="FAILED, see $log" failed+=("$scenario")
    fi
    made=$(sed -n 's/^@metric made_to_fail \([0-9]*\) .*/\1/p' "$log")
    printf 'faults: %2d/%d %-16s %5s passes failed, %s (%d s)\n' "$n" "${#scenarios[@]}" "$scenario" "${made:-0}" \
        "$verdict" "$((SECONDS - began))"
done
printf '\n| step | call | failed |\n|---|---|---|\n'
cat "$logs"/*.log | tr -d '\r' | sed -n 's/^@step made to fail: \([A-Z_]*\) in \([A-Z_0-9]*\): \([0-9]*\)$/\1 \2 \3/p' |
    awk '{ sum[$1 " | " $2] += $3 } END { for (row in sum) print "| " row " | " sum[row] " |" }' | LC_ALL=C sort
if ((${#failed[@]} > 0)); then
    printf '\nfaults: failed on %s: %s\n' "$cpu" "${failed[*]}"
    exit 1
fi
printf '\nfaults: every scenario passed on %s\n' "$cpu"
