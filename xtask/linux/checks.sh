# What the first processes of host and guest say their checks with, by their own pass NAME and fail NAME REASON.

# holds NAME REASON COMMAND...: the check holds if the command does.
holds() {
    local name=$1 reason=$2
    shift 2
    if "$@"; then pass "$name"; else fail "$name" "$reason"; fi
}

# is NAME HAVE WANT
is() {
    if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "'$2', not '$3'"; fi
}

# said PATTERN: the kernel did, in /tmp/dmesg.
said() { grep -q -- "$1" /tmp/dmesg; }

# Powers off when the console has said everything. What is written while the UART's driver wakes up from half a second's
# rest may stay with it (serial core: tx is not started while the port is RPM_RESUMING) until something else is written.
power_off() {
    sync
    sleep 0.1
    printf ' '
    poweroff -f
}
