#!/bin/busybox sh
# The first process of the peer: Linux with its own hypervisor at EL2. The kernel gives the word run=WORDS of its command
# line as a variable, with commas for spaces; kvm-bench gets them, and then the machine powers off.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t debugfs debugfs /sys/kernel/debug
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
# What the kernel says of its hypervisor.
dmesg | sed -n 's/^\[[^]]*\] kvm \[1\]: /@step /p'
# shellcheck disable=SC2046,SC2154
kvm-bench $(echo "$run" | tr , ' ')
poweroff -f
