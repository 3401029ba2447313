#!/bin/sh
# Fuzz what strangers send, guided by coverage: the NBD handshake, its transmission phase, then vhost-user.
#
#   scripts/fuzz.sh SECONDS         each target for so long, beginning with its kept corpus
#   scripts/fuzz.sh keep            then: add to the kept corpora what reached new code, as few inputs as do
#
# libFuzzer (by libfuzzer-sys) with the coverage counters of LLVM's sancov pass, which the stable compiler can run as well:
# no nightly toolchain and no cargo-fuzz is needed. An input that fails is left in build/fuzz/ and its path is printed;
# `build/fuzz/target/x86_64-unknown-linux-gnu/release/TARGET PATH` repeats it.
set -eu
cd "$(dirname "$0")/.."

what=${1:?seconds, or keep}
triple=$(rustc -vV | sed -n 's/^host: //p')
folder=build/fuzz
mkdir -p "$folder"

RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS
# With --target these flags are for the product's code alone, not for what runs while building.
cargo build --quiet --manifest-path native/fuzz/Cargo.toml --locked --release --target "$triple" \
    --target-dir "$folder/target"

for target in handshake transmission vhost; do
    program=$folder/target/$triple/release/$target
    found=$folder/$target kept=native/fuzz/corpus/$target
    mkdir -p "$found"
    if [ "$what" = keep ]; then
        "$program" -set_cover_merge=1 -max_len=600 "$kept" "$found" >"$found.log" 2>&1
        echo "fuzz: $target keeps $(find "$kept" -type f | wc -l) inputs"
        continue
    fi
    "$program" -max_total_time="$what" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$folder/$target-" "$found" "$kept" >"$found.log" 2>&1 || {
        grep -E "panicked|^assertion|^  (left|right)|Test unit written|ERROR" -A 1 "$found.log" >&2
        echo "fuzz: $target failed; all of its words are in $found.log" >&2
        exit 1
    }
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found.log")
    echo "fuzz: $target $runs runs from $(find "$kept" -type f | wc -l) kept inputs, none failed"
done
