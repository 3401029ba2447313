#!/bin/sh
# Run checks and tests one after the other, go on after a failure, and end with one line for each and a verdict.
#
#   scripts/test.sh all|lint|rust|python|e2e|guest|soak [pytest arguments]
#
# Needs the PATH of build/setup/env. CI=true is the strict mode: the tiers that CI has no parts for are deselected
# by their marker, and anything that is skipped all the same fails the run.
# UBI_SOAK_SECONDS is about how long `soak` goes on, which tries what is random in the other tests with new seeds.
# UBI_TEST_IO_ENGINES="threads" leaves the other I/O engine out, as happens by itself where the kernel refuses io_uring.
set -u
cd "$(dirname "$0")/.." || exit 2

logs=build/logs
summary=build/logs/summary
mkdir -p "$logs"
: >"$summary"
failed=0
what=${1:-all}
[ $# -eq 0 ] || shift

# Markers of pyproject.toml whose parts a plain CI machine does not have; FUSE it has, unless a container hides it.
ci_deselect="not needs_block_device and not needs_cgroup_blkio and not needs_kernel_nbd"
if ! (: <>/dev/fuse) 2>/dev/null || [ "$(id -u)" -ne 0 ]; then ci_deselect="$ci_deselect and not needs_fuse"; fi

# What scripts/setup.sh could get for a guest decides whether machines are booted.
guest_ready() {
    command -v qemu-system-x86_64 >/dev/null && [ -n "$(ls build/guest/kernel/boot/vmlinuz-* 2>/dev/null)" ]
}

# Does this kernel let us set up a ring? Containers often forbid it. Asked of the kernel, not of our engine: where
# rings work, an engine that does not start is a failure, not a reason to leave its tests out.
io_uring_allowed() {
    python - <<'END'
import ctypes
import os
import sys

SYS_IO_URING_SETUP = 425
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(SYS_IO_URING_SETUP, 4, ctypes.create_string_buffer(120)) < 0:
    sys.exit("io_uring_setup: " + os.strerror(ctypes.get_errno()))
END
}

# Tests that run on both engines take their names from here, unless the caller names some.
if [ -z "${UBI_TEST_IO_ENGINES:-}" ]; then
    UBI_TEST_IO_ENGINES="io_uring threads"
    refused=$(io_uring_allowed 2>&1) || UBI_TEST_IO_ENGINES=threads
fi
export UBI_TEST_IO_ENGINES
with_engine() { case " $UBI_TEST_IO_ENGINES " in *" $1 "*) ;; *) return 1 ;; esac; }
with_engine io_uring ||
    printf '%-18s %-6s        %s\n' io_uring "not run" "${refused:-not among UBI_TEST_IO_ENGINES}" >>"$summary"

# check NAME PATTERN COMMAND...: run it, keep its output, and note the last line that matches PATTERN.
check() {
    name=$1 pattern=$2
    shift 2
    log=$logs/$(echo "$name" | tr ' /' '--').log
    printf '\n--- %s: %s\n' "$name" "$*"
    began=$(date +%s)
    # sh has no pipefail: the status travels in a file.
    { "$@" 2>&1 && echo 0 >"$log.status" || echo $? >"$log.status"; } | tee "$log"
    status=$(cat "$log.status")
    rm -f "$log.status"
    closing=$(sed 's/\x1b\[[0-9;]*m//g; s/^ *//' "$log" | grep -E "$pattern" | tail -n 1)
    if [ "$status" -eq 0 ]; then verdict=ok; else verdict=FAILED failed=1; fi
    printf '%-18s %-6s %4ds  %s\n' "$name" "$verdict" "$(($(date +%s) - began))" "$closing" >>"$summary"
}

lint() {
    check "ruff check" "^(All checks|Found)" ruff check .
    check "ruff format" "[0-9]+ files?" ruff format --check .
    # shellcheck disable=SC2046
    check "mypy strict" "^(Success|Found|There)" mypy $(ls -d ubi_rpc scripts demo tests bench conftest.py 2>/dev/null)
    check "rustfmt" . cargo fmt --manifest-path native/Cargo.toml --all --check
    check "rustfmt fuzz" . cargo fmt --manifest-path native/fuzz/Cargo.toml --check
    check "clippy" . cargo clippy --manifest-path native/Cargo.toml --locked --workspace --all-targets -- -D warnings
    check "clippy fuzz" . cargo clippy --manifest-path native/fuzz/Cargo.toml --locked --all-targets \
        --target-dir build/fuzz/lint -- -D warnings
}

# The PyO3 crate is glue and is tested from Python: linking its tests would need libpython's headers and library.
rust() {
    set -- --manifest-path native/Cargo.toml --locked --workspace --exclude ubi-python --no-fail-fast
    if cargo nextest --version >/dev/null 2>&1; then
        if with_engine io_uring; then
            check "rust tests" "Summary" cargo nextest run "$@"
        else
            check "rust tests" "Summary" cargo nextest run "$@" -E 'not test(/^sys::uring::/)'
        fi
        check "rust doc tests" "test result" cargo test "$@" --doc
        skipped=$(grep -cE "Summary.* [1-9][0-9]* skipped" "$logs/rust-tests.log")
    else
        if with_engine io_uring; then
            check "rust tests" "test result: .* [1-9][0-9]* (passed|failed)" cargo test "$@"
        else
            check "rust tests" "test result: .* [1-9][0-9]* (passed|failed)" cargo test "$@" -- --skip sys::uring::
        fi
        skipped=$(grep -cE "test result: .* [1-9][0-9]* ignored" "$logs/rust-tests.log")
        awk '/^test result:/ { runs++; passed += $4; failed += $6; ignored += $8 }
            END { printf "%-25s       sum of %d: %d passed; %d failed; %d ignored\n", "", runs, passed, failed, ignored }' \
            "$logs/rust-tests.log" >>"$summary"
    fi
    # Optimised, for millions of states: the engine as it ships, then one with faults that can be switched on.
    set -- --manifest-path native/Cargo.toml --locked --release -p ubi-engine
    check "crash simulation" "^simulation: [0-9]{7,} " cargo test "$@" --test crash_simulation -- --nocapture
    check "metadata damage" "test result" cargo test "$@" --test ubi_examine --test ubi_damage
    check "broken variants" "test result" cargo test "$@" --features broken-variants --test broken_variants -- --nocapture
    check "fuzz faults" "^fuzz: .* all found" sh scripts/fuzz.sh faults "${UBI_FUZZ_SECONDS:-12}"
    check "fuzzing" "^fuzz: .* runs" sh scripts/fuzz.sh "${UBI_FUZZ_SECONDS:-12}"
    if [ "${CI:-}" = true ] && [ "$skipped" -ne 0 ] && with_engine io_uring; then
        printf '%-18s %-6s        some were ignored, and CI allows none\n' "rust tests" FAILED >>"$summary"
        failed=1
    fi
}

# tests NAME ARGUMENT...: pytest, strict where CI is.
tests() {
    name=$1
    shift
    if [ "${CI:-}" = true ]; then set -- -m "$ci_deselect" "$@"; fi
    check "$name" "^=+ .* in [0-9.]+s" python -m pytest "$@"
}

python_tests() {
    export UBI_FUZZ_FRAMES="${UBI_FUZZ_FRAMES:-200000}" # a tenth of it goes over the wire
    tests "python tests" --ignore=tests/e2e --ignore=tests/crash tests "$@"
}

e2e() {
    for engine in $UBI_TEST_IO_ENGINES; do
        export UBI_IO_ENGINE="$engine"
        tests "e2e $engine" --ignore=tests/e2e/test_guest.py tests/e2e tests/crash "$@"
        unset UBI_IO_ENGINE
    done
}

# Machines in software emulation: once, since the other engine's requests are the same.
guest() {
    if ! guest_ready; then
        printf '%-18s %-6s        %s\n' "guest tests" "not run" "no qemu-system-x86_64, or no kernel in build/guest" >>"$summary"
        return
    fi
    export UBI_IO_ENGINE="${UBI_TEST_IO_ENGINES%% *}"
    tests "guest tests" tests/e2e/test_guest.py "$@"
    unset UBI_IO_ENGINE
}

# Three fifths for kills of the daemon, one for simulated cuts, one for random requests, half of it to the NBD server.
soak() {
    soak_s=${UBI_SOAK_SECONDS:-600}
    engines=$(echo "$UBI_TEST_IO_ENGINES" | wc -w)
    for engine in $UBI_TEST_IO_ENGINES; do
        # Each of the two loads of the test goes on for as long.
        export UBI_IO_ENGINE="$engine" UBI_SOAK_SECONDS=$((soak_s * 3 / 10 / engines))
        tests "kills $engine" -k at_any_moment -rP tests/crash "$@"
        unset UBI_IO_ENGINE UBI_SOAK_SECONDS
    done
    ends=$(($(date +%s) + soak_s / 5)) turn=0
    while [ "$turn" -eq 0 ] || [ "$(date +%s)" -lt "$ends" ]; do
        turn=$((turn + 1))
        UBI_SIM_SEED=random check "power cuts $turn" "^simulation: " cargo test --manifest-path native/Cargo.toml \
            --locked --release -p ubi-engine --test crash_simulation random -- --nocapture
    done
    # A second carries a few hundred frames.
    UBI_FUZZ_FRAMES=$((10000 + soak_s * 20)) tests "random requests" tests/fuzz
    check "fuzzing" "^fuzz: .* runs" sh scripts/fuzz.sh "$((soak_s / 20 + 1))"
}

case $what in
all)
    lint
    rust
    python_tests
    e2e
    guest
    ;;
lint) lint ;;
rust) rust ;;
python) python_tests "$@" ;;
e2e) e2e "$@" ;;
guest) guest "$@" ;;
soak) soak "$@" ;;
*) echo "usage: scripts/test.sh all|lint|rust|python|e2e|soak [pytest arguments]" >&2 && exit 2 ;;
esac

printf '\n=== summary (logs in %s)\n' "$logs"
cat "$summary"
if [ "$failed" -eq 0 ]; then echo "=== all passed"; else echo "=== FAILED"; fi
exit "$failed"
