#!/bin/sh
# Fuzz what strangers send, guided by coverage: the NBD handshake, its transmission phase, then vhost-user.
#
#   scripts/fuzz.sh SECONDS         each target for so long, beginning with its kept corpus
#   scripts/fuzz.sh keep            then: add to the kept corpora what reached new code, as few inputs as do
#   scripts/fuzz.sh faults SECONDS  show that each target can fail: every fault that native/engine/src/fault.rs plants for
#                                   it has to be found in so many seconds
#
# libFuzzer (by libfuzzer-sys) with the coverage counters of LLVM's sancov pass, which the stable compiler can run as well:
# no nightly toolchain and no cargo-fuzz is needed. An input that fails is left in build/fuzz/ and its path is printed;
# `build/fuzz/target/x86_64-unknown-linux-gnu/release/TARGET PATH` repeats it.
set -eu
cd "$(dirname "$0")/.."

what=${1:?seconds, keep or faults}
triple=$(rustc -vV | sed -n 's/^host: //p')
folder=build/fuzz
mkdir -p "$folder"

RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS
# With --target these flags are for the product's code alone, not for what runs while building.
build() {
    cargo build --quiet --manifest-path native/fuzz/Cargo.toml --locked --release --target "$triple" \
        --target-dir "$folder/target" "$@"
}

# One fault at a time, by the name that the engine takes from UBI_FAULT, on copies of the programs.
find_faults() {
    build --features broken-variants
    rm -rf "$folder/faults"
    mkdir -p "$folder/faults"
    sed -n 's/^ *\([A-Za-z]*\): "\([a-z]*\): \(.*\)",$/\1 \2 \3/p' native/engine/src/fault.rs >"$folder/faults/list"
    while read -r fault target text; do
        found=$folder/faults/$fault
        mkdir -p "$found"
        if UBI_FAULT=$fault "$folder/target/$triple/release/$target" -max_total_time="$1" -max_len=4096 -timeout=20 \
            -artifact_prefix="$found-" "$found" "native/fuzz/corpus/$target" >"$found.log" 2>&1; then
            echo "fuzz: $target does not find $fault in $1 s ($text)" >&2
            exit 1
        fi
        seen=$(grep -m 1 -A 1 "panicked" "$found.log" | tail -n 1)
        case $seen in
        "" | *"there is no such fault"*) echo "fuzz: $target with $fault ended otherwise, see $found.log" >&2 && exit 1 ;;
        esac
        runs=$(sed -n 's/^#\([0-9]*\).*/\1/p' "$found.log" | tail -n 1) # none while the kept inputs are run
        if [ -n "$runs" ]; then how="after $runs runs"; else how="with a kept input"; fi
        echo "fuzz: $target finds $fault ($text) $how: $seen"
    done <"$folder/faults/list"
    echo "fuzz: $(grep -c . "$folder/faults/list") faults, all found"
}

if [ "$what" = faults ]; then
    find_faults "${2:-12}"
    exit
fi
build

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
