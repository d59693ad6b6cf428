#!/bin/busybox sh
# /init of a dom0 whose xl runs guests. What they say on their consoles is printed once they are
# gone.

. /steps.sh

PATH=/bin:/usr/lib/xen-4.17/bin

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

# That VM gets to its last line. It says it on its serial line.
made() {
    log=/run/line
    >$log
    xl create -q /vm/xl.cfg 'firmware_override="/vm/image.elf"' \
        'bios_path_override="/vm/firmware.bin"' "serial=\"file:$log\"" &&
        await $log "init: done"
    status=$?
    sed "s/^/guest: /" $log
    [ $status = 0 ] || { /visorctl audit; xl vcpu-list; xl dmesg | tail -40; cat /var/log/xen/*linux*; }
    return $status
}

# The visor still has it, until it is destroyed.
running() {
    /visorctl vms --json | grep -q '"state":"running"' && xl destroy linux && gone xl domid linux
}

actions
