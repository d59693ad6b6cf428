#!/bin/busybox sh
# Between tpm2-tools and the TPM at the end of COM2: commands in, answers out. A tool that is done sends SIGTERM, and
# waits for the end of this: no reader may be left then, which would take the answers to the next tool.
exec 3<&0
trap : TERM
dd if=/dev/ttyS1 bs=4096 2>/dev/null &
reader=$!
cat <&3 >/dev/ttyS1 &
wait
kill $reader $!
wait
