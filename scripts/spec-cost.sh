#!/usr/bin/env bash
# What the executable specification and the checker cost at run time: the same boots with hyp/spec and without, in seconds of
# processor time that QEMU used, which other work on the machine changes little. Boot alone is counted in instructions.
#
#   scripts/spec-cost.sh [--cpu C] [SCENARIO...]
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.."
cpu=cortex-a72
if [[ ${1-} == --cpu ]]; then cpu=$2 && shift 2; fi
scenarios=("$@")
((${#scenarios[@]})) || scenarios=(smoke calls share lend smp race guest_hello guest_memory guest_share guest_realm guest_smp guest_two_vms guest_traps
    guest_protect guest_donate guest_kill guest_hostile)
readonly without=hyp/fault-injection,hyp/debug-snapshot
readonly with=$without,hyp/spec
"$scripts/setup.sh" >/dev/null

# qemu FEATURES SCENARIO OPTION...: QEMU's command line for a boot goes into the array command.
qemu() {
    local features=$1 scenario=$2
    shift 2
    read -ra command < <(cargo run --quiet --locked -p xtask -- boot --features "$features" --cpu "$cpu" --mem 160M \
        --scenario "$scenario" "$@" --dry-run)
}

# seconds FEATURES SCENARIO: processor time of a boot in which all checks hold.
seconds() {
    local TIMEFORMAT=%U log
    qemu "$1" "$2"
    log=$(mktemp)
    { time timeout 900 "${command[@]}" </dev/null >"$log" 2>/dev/null; } 2>&1
    grep -q "@end $2 .*failed=0" "$log" || printf 'spec-cost: %s failed, see %s\n' "$2" "$log" >&2
}

# instructions FEATURES: from EL2's first to the host's first, on a machine that counts them as nanoseconds.
instructions() {
    qemu "$1" smoke --smp 1
    timeout 300 "${command[@]}" -icount shift=0,sleep=off </dev/null 2>/dev/null |
        sed -nE 's/.*entering the host at [^,]*, ([0-9]+) ticks of ([0-9]+) Hz.*/\1 \2/p' | awk '{ printf "%d\n", $1 * 1e9 / $2 }'
}

row() { awk -v name="$1" -v a="$2" -v b="$3" 'BEGIN { printf "| %s | %s | %s | %.1f |\n", name, a, b, b / a }'; }

printf '| %s | without | with | times |\n|---|---|---|---|\n' "$cpu"
row 'boot, instructions' "$(instructions "$without")" "$(instructions "$with")"
sum_without=0 sum_with=0
for scenario in "${scenarios[@]}"; do
    a=$(seconds "$without" "$scenario") b=$(seconds "$with" "$scenario")
    row "\`$scenario\`, s" "$a" "$b"
    sum_without=$(awk "BEGIN { print $sum_without + $a }") sum_with=$(awk "BEGIN { print $sum_with + $b }")
done
row 'all of them, s' "$sum_without" "$sum_with"
