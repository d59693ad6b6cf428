#!/bin/busybox sh
# /init of a host that does what it finds in a folder which it shares with the build machine: the scripts 0.sh, 1.sh,
# and so on. What one prints goes to N.out, and its status to N.done, which is there when it has ended.

/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
exec >/dev/console 2>&1
export PATH=/bin:/usr/bin:/
# One program under many names.
for name in activatecredential createak createek evictcontrol flushcontext nvread pcrextend pcrread policysecret \
    quote readpublic startauthsession; do
    ln -s tpm2 /usr/bin/tpm2_$name
done
for module in /module-*; do
    insmod "$module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 share /share
cd /share || echo "init: no folder is shared"
echo "init: ready"
number=0
while true; do
    until [ -e $number.sh ]; do
        sleep 0.05
    done
    sh ./$number.sh >$number.out 2>&1
    echo $? >$number.status
    mv $number.status $number.done
    number=$((number + 1))
done
