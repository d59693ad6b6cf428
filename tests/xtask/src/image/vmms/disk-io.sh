# Sourced by the /init of hosts with VMs that `visorctl` has made: what requests of a disk cost a VM, for the bench
# disk-io. Each action is one of its configurations.

bare() {
    plain && vm=/vm-io && measured bare
}

visor() {
    plain && vm=/vm-io && measured visor
}

clear() {
    plain && vm=/vm-io && submit && measured clear
}

protected() {
    empty && vm=/vm-io-sealed && submit && measured protected
}

# The VM has a disk that nobody has written to: a plain one.
plain() {
    rm -f /data/io
    truncate -s 1G /data/io
    devices="-drive if=none,id=disk,format=raw,file=/data/io"
    devices="$devices -device virtio-blk-device,drive=disk,queue-size=64,bus=virtio-mmio-bus.0"
}

# One that its tenant has made: there are holes up to its end.
empty() {
    plain
    truncate -s "$(cat /data/io.holes)" /data/io
    cat /data/io.end >>/data/io
}

# measured CONFIG: the VM makes its requests, and the host counts before and after those of each kind. What it has found
# comes at the end, as nothing is to disturb the VM.
measured() {
    rm -f /run/line /run/input /run/monitor.* /run/counts
    mkfifo /run/input /run/monitor.in /run/monitor.out
    # Open to read and to write: nobody waits for QEMU to open them.
    exec 4<>/run/monitor.out 5<>/run/monitor.in 6<>/run/input
    input=/run/input
    start -monitor pipe:/run/monitor
    while read -r line; do
        line=${line%$return}
        case "$line" in
        "init: disk-io ready "*)
            reckon "$line"
            echo >&6
            ;;
        "init: disk-io done "*) reckon "$line" ;;
        "init: done") break ;;
        "init: disk-io: "* | *"Kernel panic"* | "KVM: "* | "KVM internal error"* | "qemu: ended"*)
            echo "guest: $line"
            return 1
            ;;
        esac
    done <&3
    kill -9 "$(cat /run/qemu)"
    wait
    sed "s/^init: /$1 /" /run/counts
}

# reckon LINE: notes the line, and exits, reads, writes and flushes so far. KVM counts the exits of its VM; if there is a
# visor, this counts all exits that there are.
reckon() {
    echo "info stats vcpu exits" >&5
    echo "info blockstats" >&5
    while read -r found; do
        case "$found" in
        "exits ("*) exits=${found##*: } ;;
        "disk: "*) break ;;
        esac
    done <&4
    exits=${exits%$return}
    all=$(/visorctl status --json 2>/dev/null | sed -n 's/.*"exits":\([0-9]*\).*/\1/p')
    requests=$(echo "$found" | sed 's/.* rd_operations=\([0-9]*\) wr_operations=\([0-9]*\) flush_operations=\([0-9]*\).*/\1 \2 \3/')
    echo "$1 ${all:-$exits} $requests" >>/run/counts
}
