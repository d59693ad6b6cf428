# Sourced by the host's /init: the actions of init.do=a,b,c, one after the other.

/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
exec >/dev/console 2>&1
echo "init: userspace reached"

# word KEY: the value of the last KEY=value of the kernel's command line.
word() {
    tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

# await FILE TEXT [COUNT]: until FILE has COUNT lines with TEXT.
await() {
    tries=0
    until [ "$(cat "$1" 2>/dev/null | grep -c -- "$2")" -ge "${3:-1}" ]; do
        tries=$((tries + 1))
        if [ $tries = 300 ]; then
            echo "init: FAIL no \"$2\" in $1"
            return 1
        fi
        sleep 0.3
    done
}

# gone COMMAND...: until COMMAND fails.
gone() {
    tries=0
    while "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries = 300 ]; then
            echo "init: FAIL $* still succeeds"
            return 1
        fi
        sleep 0.2
    done
}

# Modules of KVM in the order in which they are needed.
modules() {
    for module in irqbypass kvm kvm-intel; do
        insmod /$module.ko || return 1
    done
    features=""
    for feature in ept vpid unrestricted_guest; do
        features="$features $feature=$(cat /sys/module/kvm_intel/parameters/$feature)"
    done
    echo "init: kvm_intel$features"
}

# lines FILE KIBIBYTES: 64 KiB of the file from there on, 16 bytes in a line.
lines() {
    dd if=$1 bs=1k skip=$2 count=64 2>/dev/null | hexdump -v -e '16/1 "%02x" "\n"'
}

# Of what was on the plain disk, and of what the VM has written, nothing is in the file that the host has; on the plain disk
# the same search finds it.
hidden() {
    lines /data/disk 0 | head -n 64 >/run/plain
    tr 0123456789abcdef fedcba9876543210 </run/plain >/run/written
    [ "$(lines /data/disk 0 | grep -c -F -f /run/plain)" = 64 ] || return 1
    for place in 0 1024; do
        ! lines /data/sealed $place | grep -q -F -f /run/plain -f /run/written || return 1
    done
}

# actions: runs what init.do= names; each is a function of this name.
actions() {
    for action in $(word init.do | tr ',' ' '); do
        if "$action"; then
            echo "init: PASS $action, up $(cut -d ' ' -f 1 /proc/uptime) s"
        else
            echo "init: FAIL $action"
        fi
    done
    echo "init: done"
    # Returns when all of that has been sent, for which the end would not wait.
    stty onlcr </dev/console
    poweroff -f
}
