#!/usr/bin/env bash
# Compares the stacks that the recorder writes with gdb's, in programs with frames of all kinds.
#
#     tests/oracle/stacks.sh [STACKS]     stacks to compare in each program: 120 by default
#
# Needs the debug build of rleaks, gcc, g++, rustc, gdb and binutils.
set -euo pipefail
cd "$(dirname "$0")/../.."

count=${1:-120}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
recorder=$(target/debug/rleaks preload-path)
failed=0

# compare EVERY PROGRAM [ARGUMENT]...: about each EVERYth allocation.
compare() {
    local every=$1
    shift
    echo "stacks.sh: ${*/#$folder\//}" | cut -c1-100
    tests/oracle/stacks.py "$recorder" "$count" "$every" "$@" || failed=1
}

build() {
    local output=$1
    shift
    "$@" -o "$folder/$output"
}

# No frame pointers, which is the usual way; only frame pointers, without unwind tables; for a processor
# with large vectors, where functions align their stacks.
build omit gcc -O2 -fomit-frame-pointer fixtures/stacks.c -lpthread
build pointers gcc -O1 -fno-omit-frame-pointer -fno-asynchronous-unwind-tables -fno-unwind-tables fixtures/stacks.c -lpthread
build vectors gcc -O3 -mavx2 fixtures/stacks.c -lpthread
build unoptimized gcc -O0 fixtures/stacks.c -lpthread
build cpp g++ -O2 fixtures/stacks.cpp
build cpp-static g++ -O2 -fomit-frame-pointer -static-libstdc++ -static-libgcc fixtures/stacks.cpp
build rust rustc --edition=2024 -O fixtures/stacks.rs
for library in first second; do
    build "$library.so" gcc -O2 -shared -fPIC "fixtures/${library}_library.c"
done
libraries=("$folder/first.so" first_library "$folder/second.so" second_library)

for program in omit pointers unoptimized cpp cpp-static rust; do
    compare 3 "$folder/$program" "${libraries[@]}"
done
if grep -qw avx2 /proc/cpuinfo; then
    compare 3 "$folder/vectors"
fi
compare 40 bash -c 'declare -A a; for i in {1..200}; do a[$i]=$(printf %s x$i); done; echo ${#a[@]}'
compare 200 /usr/bin/python3 -c 'import json, re; json.dumps([re.compile("a%db*" % i).pattern for i in range(100)])'
compare 5 sqlite3 :memory: 'create table t(a); insert into t values (1), (2); select sum(a) from t, t as u;'
compare 500 "$(gcc -print-prog-name=cc1)" -quiet -O2 fixtures/stacks.c -o /dev/null
exit $failed
