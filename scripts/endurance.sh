#!/usr/bin/env bash
# Endurance: virtual machines, snapshots and shares by the thousand on one boot; nothing may drift. docs/testing.md has what it came to.
#
#   scripts/endurance.sh [--cpu C] [--vms N] [--snapshots N] [--shares N] [--hours N]
set -euo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cpu=max vms=10000 snapshots=1000 shares=1000000 hours=2
while (($# > 0)); do
    case $1 in
    --cpu) cpu=$2 ;;
    --vms) vms=$2 ;;
    --snapshots) snapshots=$2 ;;
    --shares) shares=$2 ;;
    --hours) hours=$2 ;;
    *) printf 'endurance: no option %s\n' "$1" >&2 && exit 2 ;;
    esac
    shift 2
done
exec "$scripts/qemu-boot.sh" --scenario endurance --cpu "$cpu" --mem 256M --verbose --timeout $((hours * 3600)) \
    --features hyp/fault-injection,hyp/debug-snapshot --append "vms=$vms snapshots=$snapshots shares=$shares"
