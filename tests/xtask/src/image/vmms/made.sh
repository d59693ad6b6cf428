#!/bin/busybox sh
# /init of a host whose QEMU runs a VM that `visorctl ticket linux` has made: the one in the folder that
# init.vm= names. What it says on its serial line comes as "guest: ...".

. /steps.sh
for more in /life.sh /tenant.sh /disk-io.sh /rooted.sh; do
    [ ! -e $more ] || . $more
done
vm=/$(word init.vm)
return=$(printf '\r')

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

# Likewise, on a PCI bus: with interrupts by messages, and by lines.
devices_on_pci() {
    devices="-drive if=none,id=disk,format=raw,file=/data/disk -netdev user,id=network,tftp=/data/served"
    on_pci virtio-blk-pci,drive=disk,queue-size=64 1
    on_pci virtio-net-pci,netdev=network,romfile=,vectors=0 2
    on_pci virtio-rng-pci,vectors=0 3
}
on_pci() {
    devices="$devices -device $1,disable-legacy=on,addr=$2"
}

# The same with a disk that its tenant has sealed.
disk_sealed() {
    devices
    devices=$(echo "$devices" | sed s:/data/disk:/data/sealed:)
}
disk_sealed_on_pci() {
    devices_on_pci
    devices=$(echo "$devices" | sed s:/data/disk:/data/sealed:)
}

# Another VM has the same disk, and finds it as it was left.
kept() {
    # It has locks on its files.
    kill -9 "$(cat /run/qemu)"
    wait
    vm=/vm-kept
    rm -f /run/line
    submit && boot
}

# The host changes a bit of a block.
tampered() {
    printf '\125' | dd of=/data/sealed bs=1 seek=20517 conv=notrunc 2>/dev/null
}

# The visor has noticed that.
refused() {
    /visorctl audit | tee /run/audit
    grep -q disk-refused /run/audit
}

# What the VM has written is on its disk.
written() {
    [ "$(sha256sum </data/disk)" = "$(cat /data/disk.after)" ]
}

# Beside other devices it gets a console and files of the host's. The console is spoken to when it has said a line.
exchanges() {
    mkfifo /run/console.in /run/console.out
    devices="$devices -chardev pipe,id=console,path=/run/console -device virtio-serial-device,bus=virtio-mmio-bus.3"
    devices="$devices -device virtconsole,chardev=console"
    devices="$devices -fsdev local,id=served,path=/data/served,security_model=none"
    devices="$devices -device virtio-9p-device,fsdev=served,mount_tag=served,bus=virtio-mmio-bus.4"
    { lines /data/disk 0 | head -n 64; echo end; } >/run/said
    {
        read -r ready
        cat /run/said >/run/console.in &
        cat >/run/answered
    } </run/console.out &
}

# The console has said all that, line by line, backwards; and the file that the VM has written is there.
exchanged() {
    rev /run/said | cmp - /run/answered || return 1
    lines /data/served/part 0 | tr 0123456789abcdef fedcba9876543210 >/run/written
    lines /data/served/back 0 | cmp - /run/written
}

# start ARGUMENT...: the VM runs, by the arguments that came with it and these. What it reads from its serial line is $input.
start() {
    cd $vm
    # It is the same for all.
    [ -e image.bin ] || ln -s /vm/image.bin .
    mkfifo /run/line
    exec 3<>/run/line
    {
        /usr/bin/qemu-system-x86_64 $(cat qemu.args) $devices -pidfile /run/qemu "$@" <"${input:-/dev/null}"
        echo "qemu: ended with $?"
    } >&3 2>&1 &
}

# says TEXT: the VM gets to a line with TEXT. Secrets that it tells of on the way are in /run/secrets.
says() {
    while read -r line; do
        line=${line%$return}
        echo "guest: $line"
        case "$line" in
        *"init: secret "*) echo "${line##*secret }" >>/run/secrets ;;
        esac
        case "$line" in
        *"$1"*) return 0 ;;
        *"Kernel panic"* | "KVM: "* | "KVM internal error"* | "qemu: ended"*) return 1 ;;
        esac
    done <&3
}

# The VM gets to its last line.
boot() {
    start
    says "init: done"
}

# The VM has three networks besides its disk, and they have buffers of the VM's to fill.
networks() {
    devices
    devices="$disk"
    for number in 1 2 3; do
        devices="$devices -netdev user,id=n$number"
        devices="$devices -device virtio-net-device,netdev=n$number,bus=virtio-mmio-bus.$number"
    done
}

# The same on a PCI bus.
networks_on_pci() {
    devices="-drive if=none,id=disk,format=raw,file=/data/disk"
    on_pci virtio-blk-pci,drive=disk,queue-size=64 1
    for number in 1 2 3; do
        devices="$devices -netdev user,id=n$number"
        on_pci virtio-net-pci,netdev=n$number,romfile= $((number + 1))
    done
}

# peek OFFSET: two bytes of the VM's memory, as a number. poke OFFSET BYTES: other ones.
peek() {
    dd if=/proc/$(cat /run/qemu)/mem bs=1 skip=$((ram + $1)) count=2 2>/dev/null | hexdump -e '1/2 "%u"'
}
poke() {
    printf "$2" | dd of=/proc/$(cat /run/qemu)/mem bs=1 seek=$((ram + $1)) conv=notrunc 2>/dev/null
}

# bytes NUMBER: its two bytes, as escapes.
bytes() {
    printf '\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255))
}

# While the VM lives, the devices tell lies in the memory that they share with it: of more answers than there
# are requests, of one to what was not asked, and of one that is too long. The VM uses its disk afterwards.
lies() {
    start
    says "init: disk is right" || return 1
    while IFS=' -' read -r first end rest; do
        [ $((0x$end - 0x$first)) = $((64 << 20)) ] && ram=$((0x$first))
    done </proc/$(cat /run/qemu)/maps
    # Each has 2 MiB behind the window, which begin with the queue for what it receives.
    first=$((0x3800000))
    second=$((first + 0x200000))
    third=$((second + 0x200000))
    fourth=$((third + 0x200000))
    poke $((second + 0x502)) "$(bytes 0x4000)"
    index=$(peek $((third + 0x502)))
    slot=$((third + 0x504 + 8 * (index & 63)))
    poke $slot '\xff\xff\xff\xff\0\0\0\0'
    poke $((third + 0x502)) "$(bytes $((index + 1)))"
    index=$(peek $((fourth + 0x502)))
    head=$(peek $((fourth + 0x404 + 2 * (index & 63))))
    slot=$((fourth + 0x504 + 8 * (index & 63)))
    poke $slot "$(bytes $head)"'\0\0\xff\xff\xff\xff'
    poke $((fourth + 0x502)) "$(bytes $((index + 1)))"
    says "init: done"
}

# The VM resets itself, QEMU resets it while it boots, and it resets itself once more; each time it comes up
# again. Nothing of its earlier lives may be left then.
resets() {
    mkfifo /run/monitor.in /run/monitor.out
    start -monitor pipe:/run/monitor
    says "init: rebooting" && says "userspace reached" || return 1
    echo system_reset >/run/monitor.in
    says "userspace reached" && says "init: rebooting" || return 1
    while read -r words; do
        echo "look for $words" >>/run/lives
    done </run/secrets
    says "userspace reached" || return 1
    sed 's/^/vmm: /; s/$/ an earlier life/' /run/lives
}

# The VM has shut down (0x102).
shut_down() {
    /visorctl vms --json | grep -q '"cause":258,'
}

# Its ticket permits no more: QEMU resets it again and again, and it stays shut down.
exhausted() {
    says "init: rebooting" || return 1
    tries=0
    until shut_down; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || return 1
        sleep 0.3
    done
    sleep 2
    /visorctl vms
    shut_down
}

# The visor still has the VM.
running() {
    /visorctl vms
    /visorctl vms --json | grep -q '"state":"running"'
}

# QEMU is killed; KVM gives back what it had.
slay() {
    kill -9 "$(cat /run/qemu)"
    unload
}

# QEMU has ended, or is about to.
unload() {
    wait
    rmmod kvm_intel && rmmod kvm && [ ! -e /dev/kvm ]
}

actions
