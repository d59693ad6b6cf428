#!/bin/busybox sh
# /init of a host on which root attacks the VM in /vm, without a ticket and with one.

. /steps.sh

# As init.kinds= says: unprotected, or both.
attacks() {
    /intruder $(word init.kinds | tr ',' ' ')
}

actions
