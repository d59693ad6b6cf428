#!/bin/busybox sh
# /init of a dom0 whose xl runs guests. What they say on their consoles is printed once they are
# gone.

. /steps.sh

PATH=/bin:/usr/bin:/usr/lib/xen-4.17/bin

# The daemons that xl needs.
daemons() {
    mount -t xenfs xenfs /proc/xen
    mkdir -p /run/xen /run/xenstored /run/lock /var/lib/xen /var/lib/xenstored /var/log/xen/console
    ln -s /run /var/run
    ln -s /run/lock /var/lock
    xenstored && xen-init-dom0 && xenconsoled --log=guest && xl info | grep -E '^(virt_caps|xen_caps)'
}

# boots KIND: the guest KIND reaches userspace and switches itself off.
boots() {
    log=/var/log/xen/console/guest-$1.log
    xl create -q "/guest/$1.cfg" && await "$log" "init: done" && gone xl domid "$1"
    status=$?
    sed "s/^/$1: /" "$log"
    [ $status = 0 ] || cat /var/log/xen/*hvm*
    return $status
}

pvh() {
    boots pvh
}

hvm() {
    boots hvm
}

# A guest that runs is destroyed; its memory comes back.
destroy() {
    before=$(xl info free_memory)
    xl create -q /guest/stays.cfg &&
        await /var/log/xen/console/guest-stays.log "init: userspace reached" &&
        xl destroy stays && gone xl domid stays && [ "$(xl info free_memory)" = "$before" ]
}

# Gives the visor the ticket of the VM in /vm, which `visorctl ticket linux` has made.
submit() {
    /visorctl submit /vm/ticket
}

# Each virtual processor of the VM has one of the machine's: one that spins with interrupts off may not keep the
# other from it.
pinned() {
    more='cpus=["0","1"]'
}

# The VM gets virtio devices. The first is told of its interrupts by messages, the others by lines. What its network
# leads to is a QEMU of its own, without a machine.
devices() {
    qemu-system-x86_64 -M none -nodefaults -display none -netdev user,id=user,tftp=/data/served \
        -netdev stream,id=link,server=on,addr.type=unix,addr.path=/run/link \
        -netdev hubport,id=a,hubid=0,netdev=user -netdev hubport,id=b,hubid=0,netdev=link &
    gateway=$!
    until [ -e /run/link ]; do
        kill -0 $gateway || return 1
        sleep 0.1
    done
    more=""
    argument -drive if=none,id=disk,format=raw,file=/data/disk
    argument -device virtio-blk-pci,drive=disk,queue-size=64,disable-legacy=on,addr=4
    argument -netdev stream,id=network,server=off,addr.type=unix,addr.path=/run/link
    argument -device virtio-net-pci,netdev=network,romfile=,vectors=0,disable-legacy=on,addr=5
    argument -device virtio-rng-pci,vectors=0,disable-legacy=on,addr=6
    more="device_model_args_hvm=[$more]"
}
# Its only device is a disk that its tenant has sealed.
disk_sealed() {
    more=""
    argument -drive if=none,id=disk,format=raw,file=/data/sealed
    argument -device virtio-blk-pci,drive=disk,queue-size=64,disable-legacy=on,addr=4
    more="device_model_args_hvm=[$more]"
}
argument() {
    more="$more\"$1\",\"$2\","
}

# says LINE: the VM runs, and says this on its serial line.
says() {
    log=/run/line
    >$log
    xl create -q /vm/xl.cfg 'firmware_override="/vm/image.elf"' \
        'bios_path_override="/vm/firmware.bin"' "serial=\"file:$log\"" ${more:+"$more"} && await $log "$1"
    status=$?
    sed "s/^/guest: /" $log
    [ $status = 0 ] || { /visorctl audit; xl vcpu-list; xl dmesg | tail -40; cat /var/log/xen/*linux*; }
    return $status
}

# It gets to its last line.
made() {
    says "init: done"
}

# What it has written is on its disk.
written() {
    [ "$(sha256sum </data/disk)" = "$(cat /data/disk.after)" ]
}

# beats COUNT: it beats so often from now on.
beats() {
    await $log "init: beat $(($(grep -c "init: beat" $log) + $1)) ok"
}

# Root in dom0 writes all of its memory and its registers to a file, and looks for its secret there. It beats on.
dumped() {
    says "init: beat 2 ok" && /vmm xen-dump && xl pause linux || return 1
    /intruder find /run/core $(sed -n 's/\r//; s/^init: secret //p' $log) && xl unpause linux || return 1
    beats 2
}

# dom0 wants it to make do with less memory. Nothing in the VM listens, so it has as much as before, and beats on.
shrunk() {
    before=$(memory)
    xl mem-set linux 24 && beats 2 && echo "init: $before MiB, then $(memory)" && [ "$(memory)" = "$before" ]
}
memory() {
    xl list linux | awk 'NR == 2 { print $3 }'
}

# Nobody has harmed it.
unharmed() {
    ! grep -q harmed $log
}

# The visor still has it. One that has halted Xen's tools destroy by themselves, at about this time.
running() {
    /visorctl vms --json | grep -q '"state":"running"' || return 1
    xl destroy linux
    gone xl domid linux
}

actions
