#!/bin/busybox sh
# The first process of the Linux guest. The kernel gives the words NAME=VALUE of its command line as variables:
#   run     checks: all of them; talk: what the host disturbs; shell: a shell
#   realm   1 in a realm, else 0
#   vcpus   the number of CPUs that the machine has
#   secret  16 letters, of which the words that stay in memory are made
# The host knows the lines "begin", "pass NAME", "fail NAME: REASON" and "end"; others are shown.

# Before anything else: the host looks at its clock.
[ "$run" = shell ] || echo begin

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=50% tmpfs /tmp

pass() { echo "pass $1"; }

# fail NAME REASON
fail() { echo "fail $1: $2"; }

. /checks.sh

last_cpu() { if [ "$vcpus" -gt 1 ]; then echo "0-$((vcpus - 1))"; else echo 0; fi; }

check_discovery() {
    dmesg >/tmp/dmesg
    holds "user space of $(uname -sr)" "no /proc" test -e /proc/self
    holds "all CPUs started at EL1" "$(grep 'started at EL' /tmp/dmesg)" said 'CPU: All CPU(s) started at EL1'
    holds "PSCI 1.1" "$(grep psci /tmp/dmesg | head -n 1)" said 'PSCIv1.1 detected in firmware'
    holds "virtual timer" "$(grep arch_timer /tmp/dmesg | head -n 1)" said 'arch_timer: cp15 timer running.*(virt)'
    is "all CPUs online" "$(cat /sys/devices/system/cpu/online)" "$(last_cpu)"
    if [ "$realm" = 1 ]; then
        holds "the kernel knows that it is a realm" "no RSI" said 'RME: Using RSI version 1.0'
        holds "the realm's device" "none" test -e /sys/devices/platform/arm-cca-dev
    else
        is "the kernel is in no realm" "$(grep -c 'Using RSI' /tmp/dmesg)" 0
    fi
}

# What the host is to look for: the words are not in the RAM disk, they are made here.
keep_secret() {
    secret=$(echo "$secret" | tr a-z n-za-m)
    yes "$secret" | head -c 1048576 >/tmp/secret
    is "the secret is in memory" "$(sort -u /tmp/secret)" "$secret"
}

check_work() {
    local count=0
    while [ $count -lt 5 ]; do
        (busybox true) && count=$((count + 1)) || break
    done
    is "processes come and go" $count 5
    sleep 1
    pass "time goes on"
}

# A virtio console whose rings are in memory that is shared with the host, which says each line again.
check_virtio() {
    local answer
    insmod /virtio_mmio.ko.xz || fail "the driver of virtio" "insmod says $?"
    holds "a virtio console" "none" test -c /dev/hvc0
    # Opened once and kept: the last close would forget what has not arrived yet.
    exec 3<>/dev/hvc0
    stty raw -echo <&3
    echo "ping of $(uname -n)" >&3
    read -r -t 10 answer <&3
    is "the host answers on the virtio console" "$answer" "heard ping of $(uname -n)"
    head -c 3000 /dev/zero | tr '\0' x | fold -w 100 >&3
    printf '\nover\n' >&3
    while read -r -t 10 answer <&3 && [ "$answer" != "heard over" ]; do :; done
    is "the virtio console goes on" "$answer" "heard over"
    exec 3<&-
}

# Dialogues over the virtio console while the host writes rubbish into all that is shared: each may end in any way, and
# the device is started anew behind it.
talk() {
    local round=0 driver=/sys/bus/virtio/drivers/virtio_console
    insmod /virtio_mmio.ko.xz
    while [ $round -lt 6 ]; do
        round=$((round + 1))
        (
            exec 3<>/dev/hvc0
            stty raw -echo <&3
            echo "round $round" >&3
            head -c 400 /dev/zero | tr '\0' x >&3
            answer=none
            read -r -t 1 answer <&3
            [ "$answer" = "heard round $round" ] && answer=right || answer=wrong
            echo "dialogue $round: $answer"
        ) &
        sleep 1
        kill -9 $! 2>/dev/null
        echo virtio0 >$driver/unbind
        echo virtio0 >$driver/bind
    done
}

# Every CPU but the first goes off and on again through PSCI.
check_hotplug() {
    local cpu=1
    [ "$vcpus" -gt 1 ] || return
    while [ $cpu -lt "$vcpus" ]; do
        echo 0 >/sys/devices/system/cpu/cpu$cpu/online
        cpu=$((cpu + 1))
    done
    is "CPUs go off" "$(cat /sys/devices/system/cpu/online)" 0
    cpu=1
    while [ $cpu -lt "$vcpus" ]; do
        echo 1 >/sys/devices/system/cpu/cpu$cpu/online
        cpu=$((cpu + 1))
    done
    is "CPUs go on again" "$(cat /sys/devices/system/cpu/online)" "$(last_cpu)"
}

# A realm finds its devices in the half that it shares. In the other half, where there is no memory, each access is an
# abort that the host does not hear of: the kernel had none, and a program that tries one has.
check_halves() {
    is "no access of the kernel's was aborted" "$(dmesg | grep -c 'external abort')" 0
    [ "$realm" = 1 ] || return
    (devmem 0x0b000000 32) >/dev/null 2>&1
    is "where the private half has no memory is an abort" $? 135
}

check_kernel_log() {
    dmesg | grep -E 'Oops|Internal error|BUG:|WARNING:|Call trace|soft lockup|rcu.*stall' >/tmp/bad
    holds "the kernel is well" "$(head -n 1 /tmp/bad)" test ! -s /tmp/bad
    [ ! -s /tmp/bad ] || dmesg | tail -n 60
}

case $run in
checks)
    check_discovery
    keep_secret
    check_work
    check_virtio
    check_hotplug
    check_halves
    check_kernel_log
    echo "end"
    ;;
talk)
    check_discovery
    keep_secret
    talk
    check_kernel_log
    echo "end"
    ;;
shell)
    echo "Linux $(uname -r) as a guest of Rampart; 'exit' powers off."
    setsid cttyhack sh
    ;;
*) echo "unknown: run=$run" ;;
esac
power_off
