#!/bin/busybox sh
# /init of a host whose QEMU runs a VM that `visorctl ticket linux` has made: the one in the folder that
# init.vm= names. What it says on its serial line comes as "guest: ...".

. /steps.sh
vm=/$(word init.vm)

# Gives the visor the VM's ticket.
submit() {
    /visorctl submit $vm/ticket
}

# The VM gets virtio devices.
devices() {
    disk="-drive if=none,id=disk,format=raw,file=/data/disk"
    disk="$disk -device virtio-blk-device,drive=disk,queue-size=64,bus=virtio-mmio-bus.0"
    network="-netdev user,id=network,tftp=/data/served"
    network="$network -device virtio-net-device,netdev=network,bus=virtio-mmio-bus.1"
    devices="$disk $network -device virtio-rng-device,bus=virtio-mmio-bus.2"
}

# What the VM has written is on its disk.
written() {
    [ "$(sha256sum </data/disk)" = "$(cat /data/disk.after)" ]
}

# The VM gets to its last line, by the arguments that came with it.
boot() {
    cd $vm
    mkfifo /run/line
    exec 3<>/run/line
    {
        /usr/bin/qemu-system-x86_64 $(cat qemu.args) $devices -pidfile /run/qemu </dev/null
        echo "qemu: ended with $?"
    } >&3 2>&1 &
    while read -r line; do
        echo "guest: $line"
        case "$line" in
        *"init: done"*) return 0 ;;
        *"Kernel panic"* | "KVM: "* | "KVM internal error"* | "qemu: ended"*) return 1 ;;
        esac
    done <&3
}

# The visor still has the VM.
running() {
    /visorctl vms
    /visorctl vms --json | grep -q '"state":"running"'
}

# QEMU is killed; KVM gives back what it had.
slay() {
    kill -9 "$(cat /run/qemu)"
    wait
    rmmod kvm_intel && rmmod kvm && [ ! -e /dev/kvm ]
}

actions
