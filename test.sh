#!/usr/bin/env bash
# Installs what the tests need (Debian and Ubuntu), then runs all tests, then compares rleaks with
# other tools (tests/oracle). Arguments go to the test runner, which then is all: ./test.sh demo
set -euo pipefail
cd "$(dirname "$0")"

packages=(
    # Compilers for the fixtures, and what reads the results.
    gcc g++ gcc-multilib g++-multilib libc6-dev libc6-dev-i386 musl-tools mono-mcs binutils xz-utils
    # What changes debug information: shared by dwz, packed by llvm-dwp.
    dwz llvm
    # Programs of another machine: Debian's cross compilers of gcc and gcc-multilib exclude each other.
    clang binutils-aarch64-linux-gnu libc6-dev-arm64-cross libgcc-12-dev-arm64-cross qemu-user
    # What compresses core files.
    zstd lz4
    # Programs that are scanned while they work.
    bash python3 sqlite3 mono-runtime libmono-corlib4.5-cil
    # Allocators that must be recognised.
    libjemalloc2 libtcmalloc-minimal4 libmimalloc2.0
    # What confirms what rleaks says; valgrind needs the symbols of the dynamic loader.
    gdb valgrind libc6-dbg procps
)

is_installed() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "test.sh: run this as root, then start test.sh again: $*" >&2
        exit 2
    fi
}

install_packages() {
    local package missing=()
    for package in "${packages[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    echo "test.sh: installing ${missing[*]}" >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

if command -v apt-get >/dev/null; then
    install_packages
else
    echo "test.sh: no apt-get here; the tests need what Debian calls: ${packages[*]}" >&2
fi

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace "$@"
else
    cargo test --workspace --no-fail-fast "$@"
fi
[ $# = 0 ] || exit 0

# Each says what it finds; all need the debug build, which the tests have made.
for oracle in "run.sh 3" valgrind.sh stacks.sh; do
    if tests/oracle/$oracle; then
        echo "test.sh: tests/oracle/$oracle passed"
    else
        echo "test.sh: tests/oracle/$oracle failed" >&2
        exit 1
    fi
done
