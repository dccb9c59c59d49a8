#!/bin/bash
# Scans bash, python3 and sqlite3: first while they work (no crash, no refusal), then idle, when every leak that
# rleaks reports is confirmed by brute force on gcore's core of the same process (check.sh).
#
#   tests/oracle/run.sh [SCANS]     SCANS while at work, default 20
#
# Needs gdb, python3, sqlite3. RLEAKS names the binary. Exit status 0: all is well.
set -u
scans=${1:-20}
here=$(dirname "$(realpath "$0")")
export RLEAKS=${RLEAKS:-$here/../../target/debug/rleaks}
folder=$(mktemp -d) || exit 2
failed=0
child=

clean_up() {
    [ -n "$child" ] && kill "$child" 2>/dev/null
    rm -rf "$folder"
}
trap clean_up EXIT

# The work of each program: until the file "idle" is there; then it waits for a line on a pipe that never comes.
work_of_bash() {
    cat <<END
declare -A words
while [ ! -e $folder/idle ]; do
    for i in {1..300}; do words[\$((RANDOM % 999))]="\${words[\$i]:0:50} \$i \$(( i * i ))"; done
    list=(\${words[@]}) joined="\${list[*]^^}" trimmed="\${joined// /-}"
    f() { local x="\$1"; [ \${#x} -gt 0 ] && f "\${x:1}"; }; f abcdefghijklmnop
    unset list; wait
done
echo idle; read -r line
END
}

work_of_python3() {
    cat <<END
import json, os, re, threading, random, sqlite3, zlib
def work():
    held = {}
    while not os.path.exists("$folder/idle"):
        for i in range(2000):
            held[random.randrange(5000)] = [str(i) * random.randrange(300), {"n": i, "l": list(range(i % 50))}]
        text = json.dumps(list(held.values())[:500])
        re.findall("[a-c0-9]+", text)[:10]; zlib.compress(text.encode()); json.loads(text)
        base = sqlite3.connect(":memory:"); base.execute("create table t (a, b)")
        base.executemany("insert into t values (?, ?)", [(i, str(i)) for i in range(500)]); base.close()
threads = [threading.Thread(target=work) for _ in range(3)]
for each in threads: each.start()
for each in threads: each.join()
print("idle", flush=True)
os.read(0, 1)
END
}

# sqlite3 has no loop: it gets the same statements again and again until it shall be idle.
feed_sqlite3() {
    echo "create table t (a integer primary key, b text, c real); create index i on t (b);"
    while [ ! -e "$folder/idle" ]; do
        cat <<END
insert into t (b, c) with recursive n(x) as (select 1 union all select x + 1 from n where x < 3000) select hex(randomblob(20)), x from n;
select count(*), group_concat(substr(b, 1, 3)) from (select * from t order by c desc limit 100);
with s as (select a, row_number() over (partition by substr(b, 1, 1) order by b) r from t) select max(r) from s;
delete from t where a % 3 = 0; update t set b = upper(b) || 'x' where a % 5 = 0; delete from t where a < (select max(a) - 9000 from t);
END
    done
    echo "select 'idle';"
    exec cat "$folder/never"
}

start() {
    case $1 in
    bash) work_of_bash >"$folder/work"; bash "$folder/work" <"$folder/never" >"$folder/out" & ;;
    python3) work_of_python3 >"$folder/work"; "$(python3 -c 'import sys; print(sys.executable)')" "$folder/work" <"$folder/never" >"$folder/out" & ;;
    sqlite3) mkfifo "$folder/statements"; feed_sqlite3 >"$folder/statements" & feeder=$!
             sqlite3 :memory: <"$folder/statements" >"$folder/out" & ;;
    esac
    child=$!
}

check_program() {
    local name=$1 refused=0
    rm -f "$folder/idle" "$folder/out"
    : >"$folder/out"
    feeder=
    start "$name"
    for ((i = 0; i < scans; i++)); do
        sleep 0.1
        "$RLEAKS" "$child" --json >/dev/null 2>"$folder/complaint"
        [ $? -le 1 ] || { refused=$((refused + 1)); sed "s/^/$name: /" "$folder/complaint"; }
        kill -0 "$child" 2>/dev/null || { echo "$name: it died"; failed=1; return; }
    done
    echo "$name: $refused of $scans scans at work failed"
    [ $refused = 0 ] || failed=1
    touch "$folder/idle"
    until tail -c 6 "$folder/out" | grep -q idle; do sleep 0.1; done
    sleep 0.2
    "$here/check.sh" "$child" "$name" || failed=1
    kill "$child"
    [ -n "$feeder" ] && kill "$feeder"
    wait 2>/dev/null
    child=
}

mkfifo "$folder/never"
exec 9<>"$folder/never" # Somebody holds it open: reads from it block.
for name in bash python3 sqlite3; do
    command -v $name >/dev/null || { echo "$name is not installed" >&2; exit 2; }
    check_program $name
done
exit $failed
