#!/bin/busybox sh
# /init of a host whose QEMU runs a Linux guest with a disk and a network card in KVM. What the
# guest says on its serial line goes to the console; its log in /run/guest is for this script.

. /steps.sh

# qemu ARGUMENTS...: starts the guest; descriptor 3 is its keyboard, 4 the monitor's.
qemu() {
    rm -rf /run/vm
    mkdir /run/vm
    mkfifo /run/vm/keys /run/vm/monitor.in /run/vm/monitor.out
    exec 3<>/run/vm/keys 4<>/run/vm/monitor.in 5<>/run/vm/monitor.out
    cat <&5 >/run/vm/monitor &
    answers=$!
    /usr/bin/qemu-system-x86_64 -accel kvm -cpu host -smp "$vcpus" -m 96 \
        -nodefaults -no-user-config -display none \
        -chardev stdio,id=line,signal=off,logfile=/run/vm/guest -serial chardev:line \
        -chardev pipe,id=monitor,path=/run/vm/monitor -mon chardev=monitor \
        -kernel /guest/kernel -append "$words" \
        -drive file=/guest/root.ext4,format=raw,if=virtio \
        -drive file=/guest/data,format=raw,if=virtio \
        -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
        "$@" <&3 >/dev/console &
    vm=$!
}

# until_says COMMAND TEXT: asks the monitor until it says TEXT.
until_says() {
    tries=0
    until grep -qs -- "$2" /run/vm/monitor; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || return 1
        echo "$1" >&4
        sleep 0.3
    done
}

# over STATUS: the guest is gone, and QEMU ended with STATUS.
over() {
    wait $vm
    status=$?
    kill $answers
    [ $status = "$1" ] || {
        echo "init: FAIL QEMU ended with $status"
        return 1
    }
}

# The guest boots to its login prompt, is logged into, and checks its devices.
login() {
    qemu
    await /run/vm/guest "guest login: " || return 1
    echo root >&3
    await /run/vm/guest "guest# " || return 1
    echo /check >&3
    await /run/vm/guest "guest# " 2
}

# The guest of login, saved to a file and continued by another QEMU, answers as before.
suspend() {
    echo 'migrate "exec:cat >/run/state"' >&4
    until_says "info migrate" "Migration status: completed" || return 1
    echo quit >&4
    over 0 || return 1
    echo "init: suspended in $(stat -c %s /run/state) bytes"
    qemu -incoming "exec:cat /run/state"
    until_says "info status" "VM status: running" || return 1
    # Only the guest's shell can calculate this: what is typed is echoed as it is.
    echo 'echo resumed $((6 * 7))' >&3
    await /run/vm/guest "^resumed 42" && await /run/vm/guest "guest# "
}

# The guest of login switches itself off; what it wrote is on the disk.
leave() {
    echo "poweroff" >&3
    over 0 || return 1
    [ "$(dd if=/guest/data bs=512 skip=1 count=1 2>/dev/null | head -n 1)" = "from the guest" ]
}

# QEMU is killed in the middle of a guest; KVM gives back what it had.
slay() {
    words="$words ignore_loglevel"
    qemu
    await /run/vm/guest "Linux version" || return 1
    kill -9 $vm
    over 137 || return 1
    rmmod kvm_intel && rmmod kvm && [ ! -e /dev/kvm ]
}

ifconfig lo 127.0.0.1
mkdir /www
dd if=/dev/urandom of=/www/file bs=1k count=200 2>/dev/null
md5sum </www/file >/www/sum
httpd -p 127.0.0.1:80 -h /www
vcpus=$(word init.vcpus)
words="console=ttyS0 quiet root=/dev/vda rw ip=dhcp devtmpfs.mount=1 panic=-1 mitigations=off"
words="$words random.trust_cpu=on net.ifnames=0 nokaslr"
actions
