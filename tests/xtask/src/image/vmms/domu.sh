#!/bin/busybox sh
# /init of Xen's guests: says that it runs, and switches off unless it is told to stay.

/bin/busybox mount -t proc proc /proc
echo "init: userspace reached"
while /bin/busybox grep -q init.do=stay /proc/cmdline; do
    /bin/busybox sleep 1
done
echo "init: done"
/bin/busybox poweroff -f
