#!/usr/bin/env bash
# Runs programs of others with and without the recorder, in both of its modes: they must say and return the same.
# Servers are put to work, scanned by rleaks meanwhile, and listen on 127.0.0.1 or a socket in a folder only.
#
#     cargo build --release && tests/recorded.sh
#
# Needs: apt-get install --no-install-recommends redis-server redis-tools postgresql golang-go nodejs mono-runtime
# mono-mcs git perl sqlite3 gcc python3, and root (PostgreSQL runs as the user postgres). Python's own tests are in
# libpython3-testsuite, or come with a Python that was built from source. What is missing is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
chmod 755 "$folder"
rleaks=target/release/rleaks
recorder=$("$rleaks" preload-path --install "$folder/library")
failures=0
servers=()

finish() {
    local pid
    for pid in "${servers[@]}"; do
        kill "$pid" 2>/dev/null
    done
    rm -rf "$folder"
}
trap finish EXIT

fail() {
    echo "recorded.sh: FAILED: $*"
    failures=$((failures + 1))
}

# run COMMAND...: runs it with what it says in $folder/said, its CPU time and status beside that.
run() {
    local TIMEFORMAT='%U %S'
    { time "$@" >"$folder/said" 2>"$folder/errors" </dev/null; } 2>"$folder/time"
    echo "$?" >"$folder/status"
}

# What makes a program record; "native" does not.
recording() {
    [ "$1" = native ] || echo "LD_PRELOAD=$recorder" "RLEAKS_STACK_LOG=$1" "RLEAKS_STACK_LOG_HISTORY=$folder/events/%p"
}

# same NAME STATUS COMMAND...: it ends with STATUS and says something, with the recorder what it says without.
same() {
    local name=$1 status=$2 mode native
    shift 2
    run "$@"
    native=$(cat "$folder/time")
    if [ "$(cat "$folder/status")" != "$status" ] || ! [ -s "$folder/said" ]; then
        fail "$name does not work here: status $(cat "$folder/status"), $(tail -n 3 "$folder/errors")"
        return
    fi
    cp "$folder/said" "$folder/expected"
    for mode in lite full; do
        # shellcheck disable=SC2046 # words without spaces
        run env $(recording "$mode") "$@"
        if [ "$(cat "$folder/status")" = "$status" ] && cmp -s "$folder/said" "$folder/expected"; then
            echo "recorded.sh: $name, $mode: the same; CPU seconds (user system) $native, recorded $(cat "$folder/time")"
        else
            fail "$name, $mode: status $(cat "$folder/status"), $(tail -n 3 "$folder/errors")"
        fi
    done
}

# scan NAME PID [FUNCTION COUNT]: rleaks sees the stacks of a recorded process; COUNT leaks come from FUNCTION.
scan() {
    local status=0
    "$rleaks" "$2" --json="$folder/report.json" 2>"$folder/errors" || status=$?
    if [ "$status" != 1 ]; then
        fail "$1: rleaks ended with $status: $(cat "$folder/errors")"
    else
        python3 - "$1" "$folder/report.json" "${@:3}" <<'PYTHON' || fail "$1: no stacks"
import json, sys
report = json.load(open(sys.argv[2]))
print(f"recorded.sh: {sys.argv[1]}: scanned; {report['heap']['blocks']} blocks, {len(report['leaks'])} leaks, "
      f"{len(report['stacks'])} stacks, log {report['stack_log']['mode']}, {report['zones'][0]['allocator']}")
stacks = [report["stacks"][leak["stack"]]["frames"] for leak in report["leaks"] if leak.get("stack") is not None]
print(f"recorded.sh: {sys.argv[1]}: frames of the leaks' stacks: {sorted(set(map(len, stacks)))}")
if sys.argv[3:]:
    function, count = sys.argv[3:]
    found = sum(any(frame.get("function") == function for frame in frames) for frames in stacks)
    if found != int(count):
        sys.exit(f"{found} leaks of {function}, not {count}")
sys.exit(not stacks or len(stacks) < len(report["leaks"]) or min(map(len, stacks)) < 4)
PYTHON
    fi
}

# cpu PID: the CPU seconds of a process and its children that have ended.
cpu() {
    awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13 + $14 + $15) / ticks }' "/proc/$1/stat"
}

mkdir -m 1777 "$folder/events"
python3 -c 'import json; print(json.dumps([{"number": i, "text": "x" * (i % 50), "list": list(range(i % 9))} for i in range(20000)]))' >"$folder/data.json"

same bash 3 bash -c 'for i in {1..300}; do x=$(echo $i | tr 1 2); done; echo $x; exit 3'
same 'python3 json' 0 python3 -m json.tool --compact "$folder/data.json"
same 'python3 json and threads' 0 python3 -c 'import json, threading
out = []
def work(n):
    out.append(len(json.dumps({str(i): [i] * n for i in range(200)})))
threads = [threading.Thread(target=work, args=(n,)) for n in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(out))'
same perl 0 perl -e 'my %h; $h{$_} = [1 .. $_] for 1 .. 500; print scalar(keys %h), "\n"'
same sqlite3 0 sqlite3 :memory: 'create table t(a); with recursive c(x) as (select 1 union all select x + 1 from c where x < 20000) insert into t select x from c; select sum(a) from t;'
same 'git clone' 0 bash -c "rm -rf $folder/clone; git clone -q . $folder/clone && git -C $folder/clone rev-parse HEAD HEAD^{tree} && git -C $folder/clone fsck --full && cd $folder/clone && git ls-files -z | xargs -0 sha256sum"
same gcc 0 bash -c "for file in fixtures/*.c; do gcc -O2 -g -c -o $folder/object.o \$file && sha256sum $folder/object.o || exit; done"
same node 0 node -e 'let a = []; for (let i = 0; i < 1e5; i++) a.push({i, s: "x" + i}); console.log(a.length, require("zlib").gzipSync("hello".repeat(1000)).length)'

cat >"$folder/threads.cs" <<'CSHARP'
using System; using System.Collections.Generic; using System.Linq; using System.Threading;
class Threads {
    static void Work() { var map = new Dictionary<int, string>(); for (int i = 0; i < 20000; i++) map[i] = i.ToString(); }
    static void Main() {
        var threads = Enumerable.Range(0, 4).Select(_ => new Thread(Work)).ToList();
        threads.ForEach(t => t.Start()); threads.ForEach(t => t.Join());
        Console.WriteLine(Enumerable.Range(0, 20000).Select(i => "s" + i).Sum(s => s.Length));
    }
}
CSHARP
mcs -out:"$folder/threads.exe" "$folder/threads.cs" || fail "mcs"
same mono 0 mono "$folder/threads.exe"

cat >"$folder/program.go" <<'GO'
package main
import "fmt"
func main() { m := map[int]string{}; for i := 0; i < 1000; i++ { m[i] = fmt.Sprint(i) }; fmt.Println(len(m)) }
GO
(cd "$folder" && HOME=$folder go build -o program program.go) || fail "go build"
same 'a Go program' 0 "$folder/program"
gcc -static -o "$folder/static" fixtures/recorded.c -lpthread 2>/dev/null || fail "gcc -static"
same 'a static program' 0 "$folder/static"
for program in program static; do
    "$folder/$program" >"$folder/expected"
    "$rleaks" record -- "$folder/$program" >"$folder/said" 2>"$folder/errors" || fail "record of $program"
    cmp "$folder/said" "$folder/expected" || fail "record of $program says something else"
    grep -q 'is not recorded' "$folder/errors" || fail "record says nothing of $program: $(cat "$folder/errors")"
done

# The test suites of Python's standard library: the same tests pass, and the same ones fail if any do.
if python3 -c 'import test.test_json, test.test_threading' 2>/dev/null; then
    for mode in native lite full; do
        # shellcheck disable=SC2046 # words without spaces
        run env $(recording "$mode") python3 -m test -v test_json test_threading
        cat "$folder/said" "$folder/errors" | sed -nE 's/^(test_[^ ]+ \([^)]*\)).*\.\.\. (ok|FAIL|ERROR|skipped).*/\1 \2/p' | sort >"$folder/tests.$mode"
        echo "recorded.sh: python3's tests, $mode: $(grep -h '^Total tests:' "$folder/said"); CPU seconds $(cat "$folder/time"); not ok: $(grep -Ec ' (FAIL|ERROR)$' "$folder/tests.$mode")"
        [ "$(grep -c ' ok$' "$folder/tests.$mode")" -gt 300 ] || fail "python3's tests, $mode: $(tail -n 3 "$folder/errors")"
        cmp "$folder/tests.native" "$folder/tests.$mode" || fail "python3's tests, $mode: $(diff "$folder/tests.native" "$folder/tests.$mode")"
    done
else
    fail "python3 has no test.test_json, test.test_threading: apt-get install libpython3-testsuite"
fi

# redis, which brings jemalloc: the blocks come from the log. It leaks a string when it is told to.
socket=$folder/redis.sock
ask() { redis-cli -s "$socket" "$@"; }
for mode in native lite full; do
    # shellcheck disable=SC2046 # words without spaces
    env $(recording "$mode") redis-server --port 0 --unixsocket "$socket" --save '' --dir "$folder" \
        --enable-debug-command yes >"$folder/redis.log" 2>&1 &
    redis=$!
    servers+=("$redis")
    for _ in {1..50}; do ask ping >/dev/null 2>&1 && break; sleep 0.1; done
    # jemalloc keeps addresses that it has given out, in its caches for threads and for each large block, and what it
    # keeps is a root, of which the report warns: only in a server that has done little all leaks are found.
    if [ "$mode" != native ]; then
        for _ in {1..8}; do ask debug leak "$(printf '%0600d' 0)"; done >/dev/null
        for i in {1..8}; do ask set "after:$i" "$i"; done >/dev/null
        scan "redis, $mode" "$redis" debugCommand 8
    fi
    redis-benchmark -s "$socket" -n 50000 -q -t set,get,lpush,lrange_100 >"$folder/bench" 2>&1 &
    bench=$!
    if [ "$mode" != native ]; then
        sleep 0.3
        status=0
        "$rleaks" "$redis" --json="$folder/report.json" 2>"$folder/errors" || status=$?
        [ "$status" -le 1 ] || fail "redis under load, $mode: rleaks ended with $status: $(cat "$folder/errors")"
        python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); print("recorded.sh: redis under load:", r["heap"]["blocks"], "blocks, log", r["stack_log"]); sys.exit(r["stack_log"]["mode"] != sys.argv[2])' \
            "$folder/report.json" "$mode" || fail "redis under load, $mode: no log"
    fi
    wait "$bench" || fail "redis-benchmark, $mode"
    {
        ask flushall
        for i in {1..200}; do echo "set key:$i value:$i"; echo "rpush list $i"; echo "hset hash f$i $i"; done | ask
        ask lrange list 0 -1; ask hlen hash; ask debug digest; ask eval 'local t = {} for i = 1, 1000 do t[i] = i * 2 end return #t' 0
        ask info memory | grep '^mem_allocator'
    } >"$folder/answers.$mode" 2>&1
    cmp "$folder/answers.native" "$folder/answers.$mode" || fail "redis, $mode: other answers"
    [ "$(ask ping)" = PONG ] || fail "redis, $mode, does not answer after the scan"
    echo "recorded.sh: redis, $mode: CPU seconds $(cpu "$redis")"
    ask shutdown nosave
    wait "$redis" || fail "redis, $mode, ended with $?"
done
grep -q jemalloc "$folder/answers.native" || fail "redis does not use jemalloc"

# PostgreSQL: a server of many processes.
programs=$(dirname "$(ls /usr/lib/postgresql/*/bin/postgres | tail -n 1)")
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$folder" "$@"; }
for mode in native lite full; do
    database=$folder/database.$mode
    mkdir "$database"
    chown postgres "$database"
    ask() { psql -h "$database" -U postgres -At "$@"; }
    # shellcheck disable=SC2046 # words without spaces
    as_postgres $(recording "$mode") "$programs/initdb" -D "$database/data" -A trust 2>"$folder/errors" |
        sed "s|$database||" >"$folder/initdb.$mode" || fail "initdb, $mode: $(cat "$folder/errors")"
    # Not the function: a shell of its own would be the process that is known.
    # shellcheck disable=SC2046 # words without spaces
    setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$folder" $(recording "$mode") \
        "$programs/postgres" -D "$database/data" -k "$database" -c listen_addresses= >"$folder/postgres.log" 2>&1 &
    postgres=$!
    servers+=("$postgres")
    for _ in {1..100}; do ask -c 'select 1' >/dev/null 2>&1 && break; sleep 0.1; done
    "$programs/pgbench" -i -q -h "$database" -U postgres postgres >/dev/null 2>&1 || fail "pgbench -i, $mode"
    "$programs/pgbench" -c 4 -t 2000 -h "$database" -U postgres postgres >"$folder/pgbench" 2>&1 &
    bench=$!
    if [ "$mode" != native ]; then
        sleep 0.5
        scan "postgres, $mode" "$postgres"
        backends=$(ask -c "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 2")
        [ -n "$backends" ] || fail "postgres, $mode: no backend was there to scan"
        for backend in $backends; do scan "a backend of postgres, $mode" "$backend"; done
    fi
    wait "$bench" || fail "pgbench, $mode"
    grep -q 'actually processed: 8000/8000' "$folder/pgbench" || fail "pgbench, $mode: $(cat "$folder/pgbench")"
    ask -c 'select count(*), sum(aid) from pgbench_accounts' -c 'select count(*) from pgbench_history' \
        -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)' \
        -c "select md5(string_agg(g::text || repeat('x', g % 40), ',' order by g)) from generate_series(1, 50000) g" \
        -c 'select relname, relkind from pg_class order by 1, 2' >"$folder/answers.$mode" 2>&1
    cmp "$folder/answers.native" "$folder/answers.$mode" && cmp "$folder/initdb.native" "$folder/initdb.$mode" ||
        fail "postgres, $mode: other answers"
    seconds=$(cpu "$postgres")
    kill -INT "$postgres"
    wait "$postgres" || fail "postgres, $mode, ended with $?"
    grep -iE 'terminated by signal|PANIC' "$folder/postgres.log" && fail "postgres, $mode"
    echo "recorded.sh: postgres, $mode: $(grep 'actually processed' "$folder/pgbench"), CPU seconds $seconds"
done

echo "recorded.sh: $failures failures"
[ "$failures" = 0 ]
