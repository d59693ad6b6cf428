# Sourced by /init of a host that runs made VMs: those whose root file system is on a sealed disk, which is the host's.

# The disk.
rooted() {
    until [ -b /dev/sda ]; do
        sleep 0.1
    done
    devices="-drive if=none,id=disk,format=raw,file=/dev/sda"
    devices="$devices -device virtio-blk-device,drive=disk,queue-size=64,bus=virtio-mmio-bus.0"
}

# The VMM is killed while the VM's bank works.
killed() {
    start
    says "bank: transfer 25" || return 1
    kill -9 "$(cat /run/qemu)"
    wait
}

# The next VM has the disk.
next() {
    vm=/vm-next
    rm -f /run/line
    submit && boot
}
