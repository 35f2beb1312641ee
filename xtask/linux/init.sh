#!/bin/busybox sh
# The first process of the Linux host. The kernel gives the words NAME=VALUE of its command line as variables:
#   run     checks: all of them; driver: those of the driver; see: what the kernel sees; kexec: the kernel in /next instead of this one;
#           shell: a shell; cost: the time until here
#   effort  short: as little of each check as shows something; full: all of it
#   cpus    the number of CPUs that the machine has
# It speaks the line protocol of xtask/src/protocol.rs, and powers the machine off at the end.

# Before anything else: the counter and its frequency in Hz.
[ "$run" != cost ] || ticks=$(/bin/counter | /bin/busybox od -An -tu8)

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=90% tmpfs /tmp

passed=0 failed=0

pass() {
    echo "@pass $1"
    passed=$((passed + 1))
}

# fail NAME REASON
fail() {
    echo "@fail $1: $2"
    failed=$((failed + 1))
}

. /checks.sh

finish() {
    echo "@end linux passed=$passed failed=$failed"
    power_off
}

# hex FILE WORD: one 64-bit number of a device tree property, the WORD-th.
hex() { echo "0x$(od -An -tx1 -j $((8 * $2)) -N 8 "$1" | tr -d ' \n')"; }

# ---- What the kernel found ------------------------------------------------------------------------------------

check_discovery() {
    echo "@step Linux $(uname -r) looks at the machine it is on"
    dmesg >/tmp/dmesg
    holds "all CPUs started at EL1" "$(grep 'started at EL' /tmp/dmesg)" said 'CPU: All CPU(s) started at EL1'
    holds "EL2 is absent from its view" "no word of KVM" said 'HYP mode not available'
    holds "PSCI 1.1 over SMC" "$(grep psci /tmp/dmesg | head -n 1)" said 'PSCIv1.1 detected in firmware'
    holds "SMCCC 1.2" "$(grep 'Calling Conv' /tmp/dmesg)" said 'SMC Calling Convention v1.2'
    holds "virtual timer" "$(grep arch_timer /tmp/dmesg | head -n 1)" said 'arch_timer: cp15 timer running.*(virt)'
    holds "performance counters" "$(grep perfevents /tmp/dmesg)" said 'hw perfevents: enabled with armv8_pmuv3'
    is "all CPUs online" "$(cat /sys/devices/system/cpu/online)" "$(last_cpu)"
}

last_cpu() { if [ "$cpus" -gt 1 ]; then echo "0-$((cpus - 1))"; else echo 0; fi; }

# The carve-out is reserved, and of no withheld device the kernel makes one of its own.
check_device_tree() {
    local node
    for node in /proc/device-tree/reserved-memory/rampart@*; do
        holds "$(basename "$node") is reserved" "no no-map" test -e "$node/no-map"
    done
    for device in virtio_mmio fw-cfg pcie platform-bus; do
        is "no $device" "$(ls /sys/bus/platform/devices | grep -c "$device")" 0
    done
    is "no ITS" "$(grep -c 'ITS \[mem' /tmp/dmesg)" 0
}

# What the kernel says that the CPU has works, and nothing else does: no trap of EL2 stands before it.
check_features() {
    local file name status has
    has=$(awk '/^Features/ { sub(/.*: /, ""); print; exit }' /proc/cpuinfo)
    echo "@step tries the CPU: $has"
    for file in /features/*; do
        name=${file#/features/}
        "$file" 2>/dev/null
        status=$?
        case " $has " in
        *" $name "*) is "$name works" "status $status" "status 0" ;;
        *) holds "$name is absent" "it works all the same" test $status -ne 0 ;;
        esac
    done
    holds "cycles are counted" "no or wrong" cycles
    holds "hardware breakpoints stop" "no or wrong" breakpoint
    holds "watchpoints and breakpoints" "none" said 'hw-breakpoint: found [1-9]'
}

# ---- Work -----------------------------------------------------------------------------------------------------

# Every CPU but one goes off and on again through the PSCI relay, and the boot CPU in its turn.
check_hotplug() {
    local round=0 cpu
    [ "$cpus" -gt 1 ] || return
    echo "@step CPUs go off and on: $1 rounds"
    while [ $round -lt "$1" ]; do
        cpu=$((cpus - 1))
        while [ $cpu -ge 1 ]; do
            echo 0 >/sys/devices/system/cpu/cpu$cpu/online
            cpu=$((cpu - 1))
        done
        [ "$(cat /sys/devices/system/cpu/online)" = 0 ] || break
        cpu=1
        while [ $cpu -lt "$cpus" ]; do
            echo 1 >/sys/devices/system/cpu/cpu$cpu/online
            cpu=$((cpu + 1))
        done
        echo 0 >/sys/devices/system/cpu/cpu0/online
        [ "$(cat /sys/devices/system/cpu/cpu0/online)" = 0 ] || break
        echo 1 >/sys/devices/system/cpu/cpu0/online
        [ "$(cat /sys/devices/system/cpu/online)" = "$(last_cpu)" ] || break
        round=$((round + 1))
    done
    is "CPUs go off and on" "$round rounds" "$1 rounds"
    cpu=0
    while [ $cpu -lt "$cpus" ]; do
        holds "CPU $cpu works" "it runs nothing" taskset "$(printf %x $((1 << cpu)))" true
        cpu=$((cpu + 1))
    done
}

# Suspend-to-idle: the real-time clock, which stays the host's, wakes it.
check_suspend() {
    local before after
    echo "@step suspend to idle for two seconds"
    before=$(cat /sys/class/rtc/rtc0/since_epoch)
    echo +2 >/sys/class/rtc/rtc0/wakealarm
    if ! echo freeze >/sys/power/state; then
        fail "suspend to idle" "refused"
        return
    fi
    after=$(cat /sys/class/rtc/rtc0/since_epoch)
    holds "suspend to idle" "$((after - before)) seconds" test $((after - before)) -ge 1
}

# Most of the free memory, filled with copies of one file that are all looked at again.
check_memory() {
    local megabytes copies=0 bad=0 sum file
    megabytes=$(awk '/MemAvailable/ { print int($2 / 1024 * 4 / 5) }' /proc/meminfo)
    echo "@step fills $megabytes MiB of memory and reads it again"
    dd if=/dev/urandom of=/tmp/0 bs=1M count=16 2>/dev/null
    while [ $((16 * copies + 32)) -le "$megabytes" ]; do
        copies=$((copies + 1))
        cp /tmp/0 /tmp/$copies || break
    done
    sum=$(md5sum </tmp/0)
    file=$copies
    while [ $file -ge 1 ]; do
        [ "$(md5sum </tmp/$file)" = "$sum" ] || bad=$((bad + 1))
        rm /tmp/$file
        file=$((file - 1))
    done
    rm /tmp/0
    holds "memory was filled" "only $copies copies" test $((16 * copies)) -ge $((megabytes / 2))
    is "memory keeps what is written" "$bad copies differ" "0 copies differ"
}

# $1 processes on all CPUs at once, each the parent of another.
check_forks() {
    local cpu count
    echo "@step $1 processes on every CPU"
    cpu=0
    while [ $cpu -lt "$cpus" ]; do
        (
            count=0
            while [ $count -lt "$1" ]; do
                (busybox true) && count=$((count + 1)) || break
            done
            echo $count >/tmp/forks.$cpu
        ) &
        cpu=$((cpu + 1))
    done
    wait
    is "processes come and go" "$(cat /tmp/forks.* | sort -u)" "$1"
}

# What the kernel shows of itself and its devices. Left out: what waits for something to happen.
check_files() {
    echo "@step reads $*"
    timeout 600 find "$@" -type f ! -name kmsg ! -name 'trace_pipe*' -exec head -c 4096 {} + >/tmp/files 2>/dev/null
    holds "files of the kernel are read" "only $(wc -c </tmp/files) bytes" test "$(wc -c </tmp/files)" -gt 10000
    rm /tmp/files
}

# ---- A host that reaches for what is not its own ----------------------------------------------------------------

# reach NAME ADDRESS: a program that maps the address and reads or writes it ends with SIGBUS, each time.
reach() {
    local try=0 status
    while [ $try -lt 4 ]; do
        timeout 20 devmem "$2" >/dev/null 2>&1
        status=$?
        [ $status = 135 ] || break
        timeout 20 devmem "$2" 64 0 >/dev/null 2>&1
        status=$?
        [ $status = 135 ] || break
        try=$((try + 1))
    done
    is "$1 is out of reach" "status $status" "status 135"
}

check_hostile() {
    local node start size
    echo "@step reaches for the carve-out and a withheld device through /dev/mem"
    for node in /proc/device-tree/reserved-memory/rampart@*; do
        [ -e "$node/reg" ] || continue
        start=$(hex "$node/reg" 0) size=$(hex "$node/reg" 1)
        reach "first page of the carve-out" "$start"
        reach "middle of the carve-out" "$(printf '0x%x' $((start + size / 2 & ~4095)))"
        reach "last page of the carve-out" "$(printf '0x%x' $((start + size - 4096)))"
        timeout 20 dd if=/dev/mem of=/dev/null bs=4096 count=1 skip=$((start / 4096)) 2>/dev/null
        is "read of /dev/mem" "status $?" "status 1"
    done
    reach "fw_cfg" "$(fw_cfg)"
}

fw_cfg() { echo "0x$(basename /proc/device-tree/fw-cfg@* | cut -d@ -f2)"; }

check_kernel_log() {
    dmesg | grep -E 'Oops|Internal error|BUG:|WARNING:|Call trace|soft lockup|rcu.*stall' >/tmp/bad
    holds "the kernel is well" "$(head -n 1 /tmp/bad)" test ! -s /tmp/bad
    [ ! -s /tmp/bad ] || dmesg | tail -n 60
}

# ---- The driver ---------------------------------------------------------------------------------------------------

# Who has how many pages, but for figures that go up and down with every access.
census() { rampartctl census >"$1.all" && grep -v 'comes and goes' "$1.all" >"$1"; }

# everything_is_back NAME: the hypervisor's audit finds no fault, and every page is whose it was at the beginning.
everything_is_back() {
    census /tmp/after
    holds "$1" "$(diff /tmp/before /tmp/after | grep '^[-+][A-Zf]' | tr -s ' \n' ' ;')" cmp -s /tmp/before /tmp/after
}

# hand_out FILE NAME: over the console, where nothing else is written meanwhile.
hand_out() {
    dmesg -n 1
    echo "-----BEGIN $2-----"
    base64 "$1"
    echo "-----END $2-----"
}

load_driver() {
    echo "@step loads the driver"
    insmod /driver/rampart.ko
    is "the driver loads" $? 0
    holds "it knows the hypervisor" "no word of it" dmesg_has 'rampart: interface'
    rampartctl
    is "rampartctl shows the hypervisor" $? 0
    rampartctl >/tmp/info
    holds "the carve-out is shown" "it is not" grep -q '^carve-out .* KiB$' /tmp/info
    holds "pages are counted" "they are not" census /tmp/before
    cat /tmp/before
}

check_driver() {
    local round=0
    echo "@step gives pages away and takes them back"
    rampartctl refusals
    is "every bad request is refused with its errno" $? 0
    everything_is_back "nothing came of bad requests"
    rampartctl try
    is "pages go and come back" $? 0
    everything_is_back "every page is back"

    echo "@step kills a program that gives pages away, $1 times"
    while [ $round -lt "$1" ]; do
        rampartctl churn &
        # Later each time, by 7 ms.
        usleep $((100000 + 7000 * round))
        kill -9 $!
        wait $! 2>/dev/null
        round=$((round + 1))
    done
    everything_is_back "kill -9 brings every page back"

    rmmod rampart
    is "the driver goes" $? 0
    insmod /driver/rampart.ko
    exec 3<>/dev/rampart
    holds "an open device keeps the driver" "it goes" eval '! rmmod rampart 2>/dev/null'
    exec 3>&-
}

# What the kernel sees of the CPUs and of firmware: files, and its own words without their times.
see() {
    cat /proc/cpuinfo
    find /sys/devices/system/cpu /sys/devices/platform -type f -perm -444 ! -path '*/power/*' ! -path '*/hotplug/*' \
        ! -path '*/rtc/*' ! -path '*/tty/*' -exec grep -H '' {} + 2>/dev/null
    dmesg | sed 's/^\[[^]]*\] //' |
        grep -E 'CPU|SVE|SME|MTE|GCS|perfevents|breakpoint|arch_timer|GIC|psci|SMC|alternatives|reserved mem'
}

dmesg_has() { dmesg | grep -q -- "$1"; }

# hibernate_says WORDS: there is no disk, so no place for an image, and the kernel goes on in any case.
hibernate_says() {
    (echo disk >/sys/power/state) 2>/tmp/refusal
    holds "hibernation: $1" "$(cat /tmp/refusal)" grep -q "$1" /tmp/refusal
}

check_hibernation() {
    echo "@step hibernates"
    # As small an image as can be.
    echo 0 >/sys/power/image_size
    rampartctl hold &
    usleep 500000
    # The driver refuses: the kernel would read pages that are not its own.
    hibernate_says 'resource busy'
    kill -9 $!
    wait $! 2>/dev/null
    # The kernel makes an image of all memory, and then looks for a place to write it to.
    hibernate_says 'No such device'
    holds "an image of all memory was made" "no word of it" dmesg_has 'PM: Cannot get swap writer'
    everything_is_back "hibernation leaves the hypervisor alone"
}

check_snapshot() {
    echo "@step takes a snapshot of the host's table"
    rampartctl snapshot /tmp/host.s2
    is "a snapshot is taken" $? 0
    everything_is_back "the snapshot's pages are back"
    hand_out /tmp/host.s2 linux.s2
}

# ---- What to do ---------------------------------------------------------------------------------------------------

case $run in
checks)
    echo "@begin linux"
    check_discovery
    check_device_tree
    check_features
    case $effort in
    short)
        check_hotplug 1
        check_suspend
        check_memory
        check_forks 5
        check_files /proc/device-tree/ /proc/1 /sys/devices/system/cpu /sys/bus/platform /sys/firmware
        ;;
    *)
        check_hotplug 10
        check_suspend
        check_memory
        check_forks 100
        check_files /proc /sys
        ;;
    esac
    check_hostile
    check_kernel_log
    finish
    ;;
driver)
    echo "@begin linux"
    check_memory
    load_driver
    check_snapshot
    check_driver 10
    check_hibernation
    check_kernel_log
    finish
    ;;
see)
    see >/tmp/seen
    hand_out /tmp/seen seen
    power_off
    ;;
kexec)
    insmod /driver/rampart.ko
    # The driver takes these pages back: the next kernel would not know of them.
    rampartctl hold &
    sleep 1
    # Where the hypervisor put this kernel.
    rampartctl kexec /next 0x44000000
    power_off
    ;;
shell)
    [ ! -e /driver/rampart.ko ] || insmod /driver/rampart.ko
    echo "Linux $(uname -r) under Rampart; 'exit' powers off."
    setsid cttyhack sh
    power_off
    ;;
cost)
    set -- $ticks
    echo "@metric first_process $(($1 * (1000000000 / $2))) ns"
    power_off
    ;;
*)
    echo "unknown: run=$run"
    power_off
    ;;
esac
