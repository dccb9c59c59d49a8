#!/bin/bash
# Compares rleaks with valgrind's memcheck: blocks that are definitely or indirectly lost.
#
#   tests/oracle/valgrind.sh
#
# 1. Fixtures: what they say they leak, and what valgrind finds.
# 2. bash, python3 and sqlite3, idle after the same work: what rleaks finds in a native run, and what valgrind
#    finds in a run of its own, asked through vgdb while the program waits. python3 drops some blocks of malloc on
#    purpose, so that not all numbers are 0.
#
# Only numbers of blocks are compared. valgrind gives sizes that were asked for and places blocks elsewhere; and
# a cycle of n blocks is to valgrind 1 definitely and n - 1 indirectly lost blocks.
#
# What valgrind calls "possibly lost" (only interior pointers lead to it) is reachable to rleaks: it is printed and
# not compared. Of the 100 blocks that python3 drops, both miss a few: its interpreter leaves old pointers in dead
# variables and in memory that it has not used again. They are other ones in each run, so up to 10 may be missing on
# either side; a block too many is an error on both.
#
# Needs valgrind, python3, sqlite3. RLEAKS names the binary. Exit status: 0 they agree, 1 they do not, 2 it could
# not be tried.
set -u
here=$(dirname "$(realpath "$0")")
fixtures=$here/../../fixtures
rleaks=${RLEAKS:-$here/../../target/debug/rleaks}
folder=$(mktemp -d) || exit 2
failed=0
child=

clean_up() {
    [ -n "$child" ] && kill "$child" 2>/dev/null
    rm -rf "$folder"
}
trap clean_up EXIT

could_not() {
    echo "valgrind.sh: $*" >&2
    exit 2
}

lost() { # KIND FILE: the number of blocks lost in this way
    sed -n "s/.*$1 lost: .* bytes in \([0-9,]*\) .*blocks.*/\1/p" "$2" | tail -1 | tr -d ,
}

lost_for_good() { # FILE
    local definitely indirectly
    definitely=$(lost definitely "$1") indirectly=$(lost indirectly "$1")
    echo $((${definitely:-0} + ${indirectly:-0}))
}

check_fixture() {
    local said found
    cc -O1 -g -pthread -o "$folder/program" "$fixtures/$1" || could_not "cannot compile $1"
    valgrind --leak-check=full --show-leak-kinds=definite,indirect --log-file="$folder/log" \
        "$folder/program" </dev/null >"$folder/truth" || could_not "$1 failed under valgrind"
    said=$(grep -c '^leak ' "$folder/truth")
    found=$(lost_for_good "$folder/log")
    echo "$1: it says $said leaks, valgrind finds $found"
    [ "$said" = "$found" ] || failed=1
}

# ---- Programs: each does its work, prints "idle", and waits for a line that never comes. ----

work_of_bash() {
    cat <<'END'
declare -A words
for i in {1..500}; do words[$((i * 7 % 99))]="${words[$i]:0:50} $i $((i * i))"; done
list=(${words[@]}) joined="${list[*]^^}" trimmed="${joined// /-}"
f() { local x="$1"; [ ${#x} -gt 0 ] && f "${x:1}"; }
f abcdefghijklmnop
unset list words
echo idle
read -r line
END
}

work_of_python3() {
    cat <<'END'
import ctypes, json, os, re, sqlite3, zlib
held = {i: [str(i) * (i % 30), {"n": i}] for i in range(1000)}
text = json.dumps(list(held.values()))
re.findall("[a-c0-9]+", text); json.loads(zlib.decompress(zlib.compress(text.encode())))
base = sqlite3.connect(":memory:")
base.execute("create table t (a, b)")
base.executemany("insert into t values (?, ?)", [(i, str(i)) for i in range(500)])
base.close()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.memset.argtypes = ctypes.c_size_t, [ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
for size in range(10000, 10100):
    libc.memset(libc.malloc(size), 0, size)
print("idle", flush=True)
os.read(0, 1)
END
}

work_of_sqlite3() {
    cat <<'END'
create table t (a integer primary key, b text, c real); create index i on t (b);
insert into t (b, c) with recursive n(x) as (select 1 union all select x + 1 from n where x < 3000) select hex(x), x from n;
select count(*), group_concat(substr(b, 1, 3)) from (select * from t order by c desc limit 100);
with s as (select a, row_number() over (partition by substr(b, 1, 1) order by b) r from t) select max(r) from s;
delete from t where a % 3 = 0; update t set b = upper(b) || 'x' where a % 5 = 0;
select 'idle';
END
}

# Starts a program, under valgrind if more arguments say so, and waits until it is idle. The pid goes to `child`.
start_idle() { # NAME [COMMAND]...
    local name=$1
    shift
    : >"$folder/out"
    case $name in
    bash) "$@" bash "$folder/work" <"$folder/never" >"$folder/out" & ;;
    python3) "$@" "$(python3 -c 'import sys; print(sys.executable)')" "$folder/work" <"$folder/never" >"$folder/out" & ;;
    # The work goes in through the pipe, which stays open.
    sqlite3) "$@" sqlite3 -batch :memory: <"$folder/never" >"$folder/out" &
             cat "$folder/work" >&9 ;;
    esac
    child=$!
    until grep -q '^idle$' "$folder/out"; do
        kill -0 "$child" 2>/dev/null || could_not "$name ended before it was idle"
        sleep 0.1
    done
    # What it does between its last output and its wait takes no time to speak of.
    sleep 0.3
}

end_child() {
    kill "$child"
    wait "$child" 2>/dev/null
    child=
}

check_program() { # NAME DROPPED: the blocks that its work drops
    local name=$1 dropped=$2 reported found number
    command -v "$name" >/dev/null || could_not "$name is not installed"
    "work_of_$name" >"$folder/work"

    start_idle "$name"
    "$rleaks" "$child" --json >"$folder/report"
    [ $? -le 1 ] || could_not "rleaks failed on $name"
    end_child
    reported=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["summary"]["leaked_blocks"])' <"$folder/report")

    start_idle "$name" valgrind --vgdb=yes --vgdb-prefix="$folder/vgdb" --log-file="$folder/log"
    vgdb --vgdb-prefix="$folder/vgdb" --pid="$child" leak_check summary definiteleak >"$folder/found" 2>&1 ||
        could_not "vgdb failed: $(tail -1 "$folder/found")"
    end_child
    found=$(lost_for_good "$folder/found")
    echo "$name drops $dropped blocks: rleaks finds $reported leaks, valgrind $found (and $(lost possibly "$folder/found") possibly lost)"
    for number in "$reported" "$found"; do
        [ "$number" -le "$dropped" ] && [ "$number" -ge $((dropped - dropped / 10)) ] || failed=1
    done
}

for file in kind_root_leak.c kind_cycle.c kind_indirect.c; do
    check_fixture "$file"
done
mkfifo "$folder/never"
exec 9<>"$folder/never" # Somebody holds it open: reads from it block.
check_program bash 0
check_program python3 100
check_program sqlite3 0
exit $failed
