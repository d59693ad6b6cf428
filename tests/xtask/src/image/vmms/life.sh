# Sourced by the /init of hosts with a VM that `visorctl` has made: what hosts do with a VM that works on, and
# with its memory. After each step the VM has all of its memory as it was.

# What the VM says until QEMU ends, while the host does something else.
listen() {
    while read -r line; do
        line=${line%$return}
        echo "guest: $line"
        echo "$line" >>/run/said
        case "$line" in
        "qemu: ended"*) return ;;
        esac
    done <&3
}

# How often the VM has found its memory to be right.
count() {
    grep -c "^init: beat " /run/said
}

# beats COUNT: so often does the VM find its memory to be right from now on; the search that is under way does
# not count.
beats() {
    last=$(($(count) + 1 + $1))
    tries=0
    until [ "$(count)" -ge $last ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || return 1
        sleep 0.1
    done
}

# begin ARGUMENT...: the VM runs, with a monitor.
begin() {
    rm -rf /run/monitor.in /run/monitor.out /run/line
    mkfifo /run/monitor.in /run/monitor.out
    # Open to read and to write: nobody waits for QEMU to open them.
    exec 4<>/run/monitor.out 5<>/run/monitor.in
    echo >/run/said
    start -monitor pipe:/run/monitor "$@"
    listen &
}

# The VM works.
beating() {
    begin
    await /run/said "init: beat " && beats 1
}

# monitor COMMAND: QEMU does it, and is asked for its state until it answers, which is in $status.
monitor() {
    echo "monitor: $1"
    echo "$1" >&5
    echo "info status" >&5
    while read -r line <&4; do
        line=${line%$return}
        case "$line" in
        "VM status: "*)
            echo "monitor: $line"
            status=${line#VM status: }
            return 0
            ;;
        *Error*) echo "monitor: $line" ;;
        esac
    done
}

# has MIB: the VM has so much memory from now on. QEMU has so much of it, which is in $held, in MiB.
has() {
    echo "balloon $1" >&5
    actual=
    tries=0
    until [ "$actual" = "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || return 1
        sleep 0.2
        echo "info balloon" >&5
        while read -r line <&4; do
            case "$line" in
            *actual=*) break ;;
            esac
        done
        line=${line%$return}
        actual=${line##*actual=}
    done
    held=$(($(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$(cat /run/qemu)/status") >> 10))
    echo "init: the VM has $actual MiB, QEMU holds $held MiB"
}

# The VM gives memory up to the host and gets it back, twice, and uses all that it has.
balloon() {
    devices="-device virtio-balloon-device,deflate-on-oom=on,bus=virtio-mmio-bus.0"
    beating && beats 1 || return 1
    for round in 1 2; do
        has 96 && beats 2 && has 96 || return 1
        before=$held
        has 72 && [ $held -lt $((before - 8)) ] && beats 2 || return 1
    done
    has 96 && beats 2
}

# marks FILE: in how many of its lines the VM's pattern is.
marks() {
    echo "$1: $(grep -acF "a visor's beats" "$1") lines in clear"
}

# note: the kernel's counters are as they are now. grew COUNTER NUMBER: one has grown by so much since.
note() {
    cp /proc/vmstat /run/vmstat
}
grew() {
    was=$(sed -n "s/^$1 //p" /run/vmstat)
    is=$(sed -n "s/^$1 //p" /proc/vmstat)
    echo "init: $1 grew by $((is - was))"
    [ $((is - was)) -ge "$2" ]
}

# What the host starts from now on is in a group of its own; and the kernel can be told more.
group() {
    mount -t debugfs debugfs /sys/kernel/debug
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    echo "+memory +cpuset" >/sys/fs/cgroup/cgroup.subtree_control
    mkdir /sys/fs/cgroup/vm && echo $$ >/sys/fs/cgroup/vm/cgroup.procs
}

# The host swaps out what it can of the VM, again and again; at last it looks at what is on the disk then.
swap() {
    echo 96M >/sys/block/zram0/disksize
    mkswap /dev/zram0 && swapon /dev/zram0 || return 1
    note
    for round in 1 2; do
        reclaim 16M
        beats 2 || return 1
    done
    monitor stop
    reclaim 64M
    marks /dev/zram0
    monitor cont
    beats 2 && grew pswpout 8000 && grew pswpin 1000
}

# reclaim SIZE: so much if it can be had; the kernel says that it is an error if it cannot.
reclaim() {
    echo $1 >/sys/fs/cgroup/vm/memory.reclaim 2>/dev/null
    echo "init: swapped out $(cat /sys/fs/cgroup/vm/memory.swap.current) bytes"
}

# The host reads all of the VM's memory while it runs, and dumps and saves the VM.
save() {
    monitor "pmemsave 0 0x27f0000 \"/run/pmemsave\"" && marks /run/pmemsave && rm /run/pmemsave
    beats 1 || return 1
    monitor "dump-guest-memory /run/dump" && marks /run/dump && rm /run/dump
    beats 1 || return 1
    # Else it would never end: the VM writes faster than this machine saves.
    monitor stop
    monitor "migrate \"exec:cat >/run/saved\"" && marks /run/saved
    monitor cont && beats 1
}

# The host saves all of the VM while it runs: what the VM writes meanwhile is saved again. It goes on afterwards.
live() {
    monitor "migrate_set_parameter downtime-limit 60000"
    monitor "migrate \"exec:cat >/run/live\"" && marks /run/live && rm /run/live
    [ "$status" = "paused (postmigrate)" ] && monitor cont && beats 1
}

# The VM has a disk that its host can have snapshots on.
disk_for_snapshots() {
    devices="-drive if=none,id=snapshots,format=qcow2,file=/data/snapshots"
}

# The host has a snapshot of the VM, and the VM goes on.
snapshot() {
    monitor "savevm before" && marks /data/snapshots && beats 1
}

# Each beat of the VM's has a larger number than the one before.
rises() {
    awk 'BEGIN { last = -1 } /^init: beat / { if ($3 <= last) exit 1; last = $3 }' /run/said
}

# The VM is set back to that.
set_back() {
    monitor "loadvm before" && beats 2 && ! rises
}

# It does not notice if it has a ticket: what the host stores in its memory and its registers is lost.
not_set_back() {
    monitor "loadvm before" && beats 2 && rises
}

# The VM is killed, and goes on in another QEMU from where it was saved.
restore() {
    kill -9 "$(cat /run/qemu)"
    sleep 1
    resume && beats 2
}

# So it does not if it had a ticket, and there is another one: it is not in the state that a VM with this ticket
# begins in.
lost() {
    kill -9 "$(cat /run/qemu)"
    sleep 1
    /visorctl destroy 0
    submit && resume || return 1
    sleep 2
    /visorctl vms
    /visorctl vms --json | grep -q '"state":"stopped"' && [ "$(count)" = 0 ]
}

# Another QEMU gets the VM that was saved, and has it run.
resume() {
    begin -incoming "exec:cat /run/saved"
    tries=0
    until monitor cont && [ "$status" = running ]; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || return 1
        sleep 0.5
    done
}

# The host merges pages that are equal, and has them apart again.
merge() {
    cd /sys/kernel/mm/ksm
    echo 0 >sleep_millisecs
    echo 2000 >pages_to_scan
    scans=$(($(cat full_scans) + 4))
    echo 1 >run
    until [ "$(cat full_scans)" -ge $scans ]; do
        sleep 0.2
    done
    echo "init: merged $(cat pages_sharing) pages with $(cat pages_shared)"
    beats 2 || return 1
    echo 2 >run
    echo "init: still merged are $(cat pages_sharing)"
    [ "$(cat pages_sharing)" = 0 ] && beats 2
}

# The host makes huge pages of small ones, and splits them.
huge() {
    cd /sys/kernel/mm/transparent_hugepage
    echo 0 >khugepaged/scan_sleep_millisecs
    echo 0 >khugepaged/alloc_sleep_millisecs
    echo 4096 >khugepaged/pages_to_scan
    split
    for round in 1 2; do
        note
        echo always >enabled
        until grew thp_collapse_alloc 4; do
            beats 1 || return 1
        done
        beats 2 || return 1
        split
        beats 2 && grew thp_split_page 4 || return 1
    done
}

# All huge pages are small ones from now on.
split() {
    echo never >/sys/kernel/mm/transparent_hugepage/enabled
    echo 1 >/sys/kernel/debug/split_huge_pages
}

# The host makes room by moving pages together.
compact() {
    split
    note
    for round in 1 2; do
        echo 1 >/proc/sys/vm/compact_memory
        beats 2 || return 1
    done
    grew pgmigrate_success 1000
}

# The host moves the VM's memory to its other node and back, and has it follow the processor.
nodes() {
    note
    for node in 1 0 1; do
        echo $node >/sys/fs/cgroup/vm/cpuset.mems
        beats 2 || return 1
    done
    grew pgmigrate_success 12000 || return 1
    echo 0-1 >/sys/fs/cgroup/vm/cpuset.mems
    note
    cd /sys/kernel/debug/sched/numa_balancing
    echo 100 >scan_delay_ms
    echo 100 >scan_period_min_ms
    echo 200 >scan_period_max_ms
    echo 1 >/proc/sys/kernel/numa_balancing
    beats 12
    echo 0 >/proc/sys/kernel/numa_balancing
    beats 1 && grew numa_hint_faults 1000 && grew numa_pages_migrated 500
}
