#!/usr/bin/env bash
# Compares the stacks that the recorder writes with gdb's, in programs with frames of all kinds.
#
#     tests/oracle/stacks.sh [STACKS]     at most so many stacks of each program: 300 by default
#
# Needs the debug build of rleaks, gcc, g++, rustc, gdb and binutils.
set -euo pipefail
cd "$(dirname "$0")/../.."

count=${1:-300}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
recorder=$(target/debug/rleaks preload-path)
failed=0

# compare EVERY FUNCTIONS PROGRAM [ARGUMENT]...: about each EVERYth allocation; each of FUNCTIONS is on a stack.
compare() {
    local every=$1 functions=$2
    shift 2
    echo "stacks.sh: ${*/#$folder\//}" | cut -c1-100
    tests/oracle/stacks.py "$recorder" "$count" "$every" "$functions" "$@" || failed=1
}

build() {
    local output=$1
    shift
    "$@" -o "$folder/$output"
}

# No frame pointers, which is the usual way; only frame pointers, without unwind tables from the start or without
# those that the compiler made; for a processor with large vectors, where functions align their stacks.
build omit gcc -O2 -fomit-frame-pointer fixtures/stacks.c -lpthread
build pointers gcc -O1 -fno-omit-frame-pointer -fno-asynchronous-unwind-tables -fno-unwind-tables fixtures/stacks.c -lpthread
build tables gcc -O1 -fno-omit-frame-pointer -fcf-protection=full fixtures/stacks.c -lpthread
objcopy -R .eh_frame -R .eh_frame_hdr "$folder/tables" "$folder/stripped"
build vectors gcc -O3 -mavx2 fixtures/stacks.c -lpthread
build unoptimized gcc -O0 fixtures/stacks.c -lpthread
build cpp g++ -O2 fixtures/stacks.cpp
build cpp-static g++ -O2 -fomit-frame-pointer -static-libstdc++ -static-libgcc fixtures/stacks.cpp
build rust rustc --edition=2024 -O -Cpanic=unwind fixtures/stacks.rs
for library in first second; do
    build "$library.so" gcc -O2 -shared -fPIC "fixtures/${library}_library.c"
done
libraries=("$folder/first.so" first_library "$folder/second.so" second_library)
in_c=of_any_size,aligned,busy,jump,handle,interrupted,tick,spin,start_thread,first_library,second_library
in_cpp=descend,main,Square::name[abi:cxx11],Nested::name[abi:cxx11],__cxa_allocate_exception
in_rust=stacks::descend,stacks::main,start_thread,std::panicking::rust_panic

for program in omit unoptimized; do
    compare 3 $in_c "$folder/$program" "${libraries[@]}"
done
for program in pointers stripped; do
    ORACLE_NO_TABLES=1 compare 3 $in_c "$folder/$program" "${libraries[@]}"
done
for program in cpp cpp-static; do
    compare 5 "$in_cpp" "$folder/$program"
done
compare 8 $in_rust "$folder/rust"
if grep -qw avx2 /proc/cpuinfo; then
    compare 3 $in_c "$folder/vectors" "${libraries[@]}"
fi
compare 4 '' bash -c 'declare -A a; for i in {1..200}; do a[$i]=$(printf %s x$i); done; echo ${#a[@]}'
compare 15 '' /usr/bin/python3 -c 'import json, re; json.dumps([re.compile("a%db*" % i).pattern for i in range(100)])'
compare 1 '' sqlite3 :memory: 'create table t(a); insert into t values (1), (2); select sum(a) from t, t as u;'
compare 100 '' "$(gcc -print-prog-name=cc1)" -quiet -O2 fixtures/stacks.c -o /dev/null
exit $failed
