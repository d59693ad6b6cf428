#!/bin/sh
# Usage: run.sh SECONDS [TARGET...]
# Fuzzes each target for SECONDS, from the seeds in corpus/. Fails on the first input that
# breaks a promise, and says where it was kept.
set -eu
seconds=${1:?usage: run.sh SECONDS [TARGET...]}
shift
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- mbi1 mbi2 memmap acpi cmdline disk dmar shadow ept12 emulate instruction nested seal sealed tenant ticket tpm txt virtio
unset RUSTFLAGS
cargo build --quiet --release --locked
built=target/x86_64-unknown-linux-gnu/release
for target in "$@"; do
    mkdir -p "target/corpus/$target" target/crashes
    echo "fuzz: $target for $seconds s"
    # Of libFuzzer's report, only the last lines matter unless something was found.
    "$built/$target" -max_total_time="$seconds" -use_value_profile=1 -max_len=8192 -timeout=10 \
        -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="target/crashes/$target-" \
        "target/corpus/$target" "corpus/$target" >"target/$target.log" 2>&1 || {
        tail -n 40 "target/$target.log"
        echo "fuzz: $target failed; the input is in tests/fuzz/target/crashes/" >&2
        exit 1
    }
    grep number_of_executed_units "target/$target.log"
done
