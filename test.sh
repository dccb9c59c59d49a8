#!/usr/bin/env bash
# Installs what the tests need (Debian and Ubuntu), then runs all tests.
# Arguments go to the test runner: ./test.sh demo
set -euo pipefail
cd "$(dirname "$0")"

# A compiler for the fixtures, programs that are scanned while they work, and the tools that
# confirm what rleaks says about them.
packages=(
    gcc g++ gcc-multilib g++-multilib libc6-dev libc6-dev-i386 musl-tools binutils xz-utils
    python3 sqlite3 mono-runtime mono-mcs libmono-corlib4.5-cil libjemalloc2
    gdb valgrind procps
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
