#!/bin/sh
# Bring a checkout from nothing to ready: system packages, a Rust toolchain, the virtual environment, the native module.
#
#   scripts/setup.sh build|demo|test|bench
#
# Each word names what must work afterwards, the later ones include the earlier. Only what is missing is installed,
# and a second run with nothing changed ends in well under a second: what was done is remembered under build/setup/
# by the hash of what it was done from. As root on Debian missing packages are installed; anyone else is told which.
# RUST_FOLDERS names the only folders to look for cargo in; usually the PATH, ~/.cargo/bin and /usr/bin.
# Writes build/setup/env, which other scripts source to get the PATH that this script found or made.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
state=build/setup
logs=build/logs
mkdir -p "$state" "$logs"

goal=${1:-build}
case $goal in
build) steps=4 ;;
demo | test | bench) steps=4 ;;
*) echo "usage: scripts/setup.sh build|demo|test|bench" >&2 && exit 2 ;;
esac

step=0
began=$(date +%s)
PATH=$PATH:/usr/sbin:/sbin # mke2fs and debugfs, which a user's PATH leaves out

die() {
    printf '\n%s\n' "$*" >&2
    exit 1
}

announce() {
    step=$((step + 1))
    printf '[%d/%d %3ds] %s\n' "$step" "$steps" "$(($(date +%s) - began))" "$1"
}

# Run a command with its output in a log; say every few seconds that it lives, and show the log's end if it fails.
run_logged() {
    log=$logs/$1.log
    shift
    "$@" >"$log" 2>&1 &
    pid=$!
    waited=0
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
        [ $((waited % 10)) -ne 0 ] || printf '           %3ds  %.100s\n' "$waited" "$(tail -n 1 "$log" | tr -d '\r')"
    done
    wait "$pid" || {
        tail -n 30 "$log" >&2
        return 1
    }
}

# --- system packages -------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }
python_ok() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The Debian packages whose programs are missing here, for the goal.
missing_packages() {
    python_ok python3 || python_ok /usr/bin/python3 || echo python3-venv
    have cc || echo gcc
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    have pkg-config || echo pkg-config
    [ -e /usr/include/openssl/ssl.h ] || echo libssl-dev
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || echo ca-certificates
    [ "$goal" != build ] || return 0
    { have mke2fs && have debugfs; } || echo e2fsprogs
    { have qemu-img && have qemu-io && have qemu-nbd; } || echo qemu-utils
    { have nbdinfo && have nbdcopy; } || echo libnbd-bin
    have file || echo file # nbdinfo prints bytes it never set when this is missing
    [ "$goal" != demo ] || return 0
    /usr/bin/python3 -c 'import nbd' >/dev/null 2>&1 || echo python3-libnbd
    have nbdkit || echo nbdkit
    have c++ || echo g++ # libFuzzer
    have fusermount3 || echo fuse3
    have openssl || echo openssl # the tests' certificates
    have fio || echo fio
    [ "$goal" != test ] || return 0
    have qemu-storage-daemon || echo qemu-system-common
}

as_root_on_debian() { [ "$(id -u)" -eq 0 ] && have apt-get; }

# apt_install LOG PACKAGE...: extra options for apt-get come in $apt_options.
apt_options=
apt_install() {
    log_name=$1
    shift
    # shellcheck disable=SC2086
    run_logged "$log_name" env DEBIAN_FRONTEND=noninteractive apt-get $apt_options \
        -o DPkg::Lock::Timeout=300 install -y --no-install-recommends --no-remove "$@"
}

apt_update() {
    # shellcheck disable=SC2086
    run_logged apt-update apt-get $apt_options -o APT::Get::List-Cleanup=0 update ||
        die "apt-get update failed (above). Fix the package sources or the network, then run this again."
}

setup_packages() {
    missing=$(missing_packages | tr '\n' ' ')
    missing=${missing% }
    if [ -z "$missing" ]; then
        announce "system packages: all there"
        return
    fi
    announce "system packages: installing $missing"
    as_root_on_debian || {
        find_rust >/dev/null || missing="$missing rustc-web cargo-web rust-web-clippy rustfmt-web"
        die "These are missing and installing them needs root: $missing
On Debian or Ubuntu:  sudo apt-get install --no-install-recommends $missing
Then run the same command again."
    }
    apt_update
    # shellcheck disable=SC2086
    apt_install apt-packages $missing || die "apt-get could not install: $missing (log: $logs/apt-packages.log)"
    still=$(missing_packages | tr '\n' ' ')
    [ -z "$still" ] || die "Still missing after the installation: $still(log: $logs/apt-packages.log)"
}

# --- Rust ------------------------------------------------------------------------------------------------------------

msrv=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' native/Cargo.toml)

# at_least A B: version A >= B, two numeric components.
at_least() {
    [ "${1%%.*}" -gt "${2%%.*}" ] && return 0
    [ "${1%%.*}" -eq "${2%%.*}" ] || return 1
    minor_a=${1#*.}
    minor_b=${2#*.}
    [ "${minor_a%%.*}" -ge "${minor_b%%.*}" ]
}

rust_version() { "$1/rustc" --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p'; }

# Print the folder of a cargo and rustc that are new enough; remember the best that is too old in $state/rust-too-old.
find_rust() {
    : >"$state/rust-too-old"
    on_path=$(command -v cargo 2>/dev/null || true)
    for folder in ${RUST_FOLDERS:-"${on_path%/cargo}" "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin" /usr/bin}; do
        { [ -n "$folder" ] && [ -x "$folder/cargo" ] && [ -x "$folder/rustc" ]; } || continue
        version=$(rust_version "$folder")
        [ -n "$version" ] || continue
        if at_least "$version" "$msrv"; then
            echo "$folder"
            return 0
        fi
        echo "rustc $version" >"$state/rust-too-old"
    done
    return 1
}

no_rust() {
    found=$(cat "$state/rust-too-old")
    die "ubi_rpc needs Rust $msrv or newer to build (found: ${found:-none}). On Debian 12: apt install rustc-web cargo-web rust-web-clippy rustfmt-web.
Elsewhere: rustup. Or install a wheel: pip install ubi_rpc.$1"
}

# Would apt install a new enough rustc-web?
candidate_ok() {
    # shellcheck disable=SC2086
    candidate=$(apt-cache $apt_options policy rustc-web 2>/dev/null |
        sed -n 's/^ *Candidate: \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$candidate" ] && at_least "$candidate" "$msrv"
}

# Debian 12's own rustc-web is too old, the one in its security archive is not: where apt does not know that archive,
# name it for these calls only, beside the mirror that apt already uses.
use_security_archive() {
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^bookworm \(.*\)/\1/p' | head -n 1)
    [ -n "$mirror" ] || return 0
    sources=$root/$state/sources.list
    { cat /etc/apt/sources.list 2>/dev/null || true; } >"$sources"
    echo "deb ${mirror%/}-security bookworm-security main" >>"$sources"
    apt_options="-o Dir::Etc::SourceList=$sources"
    apt_update
}

install_rust() {
    as_root_on_debian || no_rust ""
    apt_update
    candidate_ok || use_security_archive
    candidate_ok || no_rust ""
    apt_install apt-rust rustc-web cargo-web rust-web-clippy rustfmt-web || no_rust "
apt-get could not install them by itself; its last words are above (an older rustc or rustup package is in the way?)"
}

setup_rust() {
    if ! rust_bin=$(find_rust); then
        announce "Rust: installing Debian's rustc-web and cargo-web"
        install_rust
        rust_bin=$(find_rust) || no_rust ""
    else
        announce "Rust: $("$rust_bin/rustc" --version) in $rust_bin"
    fi
    PATH=$rust_bin:$PATH
    [ "$goal" != test ] || setup_rust_tools
}

# clippy and rustfmt, where the toolchain came without them.
setup_rust_tools() {
    cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 && return 0
    if have rustup; then
        rustup component add clippy rustfmt
    elif as_root_on_debian && [ "$rust_bin" = /usr/bin ]; then
        apt_install apt-rust rust-web-clippy rustfmt-web || die "apt-get could not install clippy and rustfmt"
    else
        die "cargo clippy and cargo fmt are missing beside $rust_bin/cargo.
Install them: rustup component add clippy rustfmt, or on Debian 12: apt install rust-web-clippy rustfmt-web."
    fi
}

# --- virtual environment ---------------------------------------------------------------------------------------------

hash_of() { cat "$@" | sha256sum | cut -c 1-32; }

create_venv() {
    if python_ok python3; then python=python3; else python=/usr/bin/python3; fi
    rm -rf .venv
    "$python" -m venv .venv
}

install_requirements() {
    .venv/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements-build.lock &&
        .venv/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps --no-build-isolation \
            -r requirements-dev.lock
}

setup_venv() {
    want="$root $(hash_of requirements-build.lock requirements-dev.lock)"
    if [ "$(cat "$state/venv" 2>/dev/null)" = "$want" ] && .venv/bin/python -c '' 2>/dev/null; then
        announce "Python packages: up to date"
        return
    fi
    announce "Python packages: $(grep -c '==' requirements-dev.lock) into .venv"
    rm -f "$state/venv" "$state/native"
    create_venv
    run_logged pip install_requirements || die "pip could not install the locked requirements (log: $logs/pip.log)"
    echo "$want" >"$state/venv"
}

# --- a guest, for the tests that boot a machine: left out, with those tests, where it cannot be had ---------------------

guest=build/guest
guest_ready() {
    have qemu-system-x86_64 && have busybox && [ -n "$(ls "$guest"/kernel/boot/vmlinuz-* 2>/dev/null)" ]
}

# QEMU's parts are of one version: where qemu-utils came from the backports, so must the machine.
install_qemu() {
    apt_install apt-guest qemu-system-x86 busybox-static && return
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^bookworm \(.*\)/\1/p' | head -n 1)
    [ -n "$mirror" ] || return 1
    sources=$root/$state/sources-guest.list
    { cat /etc/apt/sources.list 2>/dev/null || true; } >"$sources"
    echo "deb $mirror bookworm-backports main" >>"$sources"
    apt_options="-o Dir::Etc::SourceList=$sources"
    apt_update
    apt_options="$apt_options -t bookworm-backports"
    apt_install apt-guest qemu-system-x86 busybox-static
}

# The kernel's package is unpacked, not installed: the machine that runs the tests keeps its own.
fetch_guest_kernel() {
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    mkdir -p "$guest/download"
    (cd "$guest/download" && apt-get -o APT::Sandbox::User=root download "$package") || return 1
    rm -rf "$guest/kernel.new" "$guest/kernel"
    dpkg-deb -x "$guest"/download/"$package"*.deb "$guest/kernel.new" && mv "$guest/kernel.new" "$guest/kernel"
}

setup_guest() {
    [ "$goal" = test ] && ! guest_ready && as_root_on_debian || return 0
    echo "           a guest for the tests that boot a machine: qemu-system-x86, a Debian kernel"
    mkdir -p "$guest"
    apt_update
    { { have qemu-system-x86_64 && have busybox; } || install_qemu; } &&
        run_logged guest-kernel fetch_guest_kernel ||
        echo "           no guest here (logs in $logs): the tests that boot one are left out"
    apt_options=
}

# --- native module ---------------------------------------------------------------------------------------------------

# Everything that the installed package is made from: the Rust sources, the metadata and the toolchain.
native_inputs() {
    find native \( -name target -o -path native/fuzz \) -prune -o -type f -print | LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum
    sha256sum pyproject.toml
    rustc --version
    echo "${NATIVE_PROFILE:-release}"
}

setup_native() {
    want=$(native_inputs | sha256sum | cut -c 1-32)
    if [ "$(cat "$state/native" 2>/dev/null)" = "$want" ] && [ -e ubi_rpc/_native.abi3.so ]; then
        announce "native module: up to date"
        return
    fi
    announce "native module: building (${NATIVE_PROFILE:-release} profile)"
    rm -f "$state/native"
    VIRTUAL_ENV=$root/.venv PATH=$root/.venv/bin:$PATH PIP_QUIET=1 \
        .venv/bin/maturin develop --locked --profile "${NATIVE_PROFILE:-release}" || die "the native module does not build (above)"
    echo "$want" >"$state/native"
}

setup_packages
setup_guest
setup_rust
setup_venv
setup_native
cat >"$state/env" <<END
PATH=$root/.venv/bin:$rust_bin:\$PATH:/usr/sbin:/sbin
VIRTUAL_ENV=$root/.venv
export PATH VIRTUAL_ENV
END
printf 'ready in %ds\n' "$(($(date +%s) - began))"
