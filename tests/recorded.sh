#!/usr/bin/env bash
# Runs programs of others with and without the recorder, in both of its modes: they must say and return the same.
# Servers are put to work, scanned by rleaks meanwhile, and listen on 127.0.0.1 or a socket in a folder only.
#
#     cargo build --release && tests/recorded.sh
#
# Needs: apt-get install --no-install-recommends redis-server redis-tools postgresql golang-go nodejs mono-runtime
# mono-mcs git perl sqlite3 gcc python3, and root (PostgreSQL runs as the user postgres).
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

# seconds COMMAND...: runs it with what it says in $folder/said, and prints its CPU time and status.
run() {
    local TIMEFORMAT='%U %S'
    { time "$@" >"$folder/said" 2>"$folder/errors" </dev/null; } 2>"$folder/time"
    echo "$?" >"$folder/status"
}

# same NAME COMMAND...: with the recorder as without.
same() {
    local name=$1 mode native
    shift
    run "$@"
    native=$(cat "$folder/time")
    cp "$folder/said" "$folder/expected"
    cat "$folder/status" >>"$folder/expected"
    for mode in lite full; do
        run env LD_PRELOAD="$recorder" RLEAKS_STACK_LOG="$mode" RLEAKS_STACK_LOG_HISTORY="$folder/events" "$@"
        cat "$folder/status" >>"$folder/said"
        if cmp -s "$folder/said" "$folder/expected"; then
            echo "recorded.sh: $name, $mode: the same; CPU seconds (user system) $native, recorded $(cat "$folder/time")"
        else
            fail "$name, $mode: $(tail -n 3 "$folder/errors")"
        fi
    done
}

# scan NAME PID: rleaks sees the stacks of a recorded process.
scan() {
    local status=0
    "$rleaks" "$2" --json="$folder/report.json" 2>"$folder/errors" || status=$?
    if [ "$status" -gt 1 ]; then
        fail "$1: rleaks ended with $status: $(cat "$folder/errors")"
    else
        python3 - "$1" "$folder/report.json" <<'PYTHON' || fail "$1: no stack log"
import json, sys
report = json.load(open(sys.argv[2]))
print(f"recorded.sh: {sys.argv[1]}: scanned; {report['heap']['blocks']} blocks, {len(report['leaks'])} leaks, "
      f"{len(report['stacks'])} stacks, log {report['stack_log']['mode']}, {report['zones'][0]['allocator']}")
sys.exit(report["stack_log"]["mode"] == "none")
PYTHON
    fi
}

same bash bash -c 'for i in {1..300}; do x=$(echo $i | tr 1 2); done; echo $x; exit 3'
same 'python3 json' python3 -m json.tool --compact tests/cmd/../../Cargo.lock
same 'python3 json and threads' python3 -c 'import json, threading
out = []
def work(n):
    out.append(len(json.dumps({str(i): [i] * n for i in range(200)})))
threads = [threading.Thread(target=work, args=(n,)) for n in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(out))'
same perl perl -e 'my %h; $h{$_} = [1 .. $_] for 1 .. 500; print scalar(keys %h), "\n"'
same sqlite3 sqlite3 :memory: 'create table t(a); with recursive c(x) as (select 1 union all select x + 1 from c where x < 20000) insert into t select x from c; select sum(a) from t;'
same 'git clone' bash -c "rm -rf $folder/clone; git clone -q . $folder/clone && git -C $folder/clone rev-parse HEAD"
same gcc bash -c "gcc -O2 -c -o $folder/object.o fixtures/recorded.c && sha256sum $folder/object.o"
same node node -e 'let a = []; for (let i = 0; i < 1e5; i++) a.push({i, s: "x" + i}); console.log(a.length, require("zlib").gzipSync("hello".repeat(1000)).length)'

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
mcs -out:"$folder/threads.exe" "$folder/threads.cs" && same mono mono "$folder/threads.exe"

cat >"$folder/program.go" <<'GO'
package main
import "fmt"
func main() { m := map[int]string{}; for i := 0; i < 1000; i++ { m[i] = fmt.Sprint(i) }; fmt.Println(len(m)) }
GO
(cd "$folder" && HOME=$folder go build -o program program.go) && same 'a Go program' "$folder/program"
gcc -static -o "$folder/static" fixtures/recorded.c -lpthread 2>/dev/null && same 'a static program' "$folder/static"
for program in program static; do
    "$rleaks" record -- "$folder/$program" >"$folder/said" 2>"$folder/errors" || fail "record of $program"
    grep -q 'cannot be recorded\|is not recorded\|not be recorded' "$folder/errors" ||
        fail "record says nothing of $program: $(cat "$folder/errors")"
done

# The test suites of Python's standard library, where they are installed.
if python3 -c 'import test.test_json, test.test_threading' 2>/dev/null; then
    for preload in '' "$recorder"; do
        LD_PRELOAD=$preload python3 -m test test_json test_threading >"$folder/said" 2>&1
        grep '^Total tests:' "$folder/said" | sed 's/ skipped.*//' >"$folder/tests${preload:+.recorded}"
    done
    cmp "$folder/tests" "$folder/tests.recorded" && echo "recorded.sh: python3's tests: $(cat "$folder/tests"), the same" ||
        fail "python3's tests: $(cat "$folder/tests" "$folder/tests.recorded")"
fi

# redis, which brings jemalloc: the blocks come from the log.
LD_PRELOAD=$recorder redis-server --port 7399 --bind 127.0.0.1 --save '' --dir "$folder" >"$folder/redis.log" 2>&1 &
servers+=($!)
redis=$!
for _ in {1..50}; do redis-cli -p 7399 ping >/dev/null 2>&1 && break; sleep 0.1; done
redis-benchmark -p 7399 -n 50000 -q -t set,get,lpush,lrange_100 >"$folder/said" 2>&1 || fail "redis-benchmark"
[ "$(redis-cli -p 7399 ping)" = PONG ] || fail "redis does not answer"
scan redis "$redis"
[ "$(redis-cli -p 7399 ping)" = PONG ] || fail "redis does not answer after the scan"
redis-cli -p 7399 shutdown nosave
wait "$redis" || fail "redis ended with $?"

# PostgreSQL: a server of many processes.
database=$folder/database
programs=$(dirname "$(ls /usr/lib/postgresql/*/bin/postgres | tail -n 1)")
mkdir "$database"
chown postgres "$database"
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$database" "$@"; }
as_postgres "$programs/initdb" -D "$database/data" -A trust >/dev/null || fail "initdb"
# Not the function: a shell of its own would be the process that is known.
setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$database" LD_PRELOAD="$recorder" \
    "$programs/postgres" -D "$database/data" -k "$database" -c listen_addresses= >"$folder/postgres.log" 2>&1 &
servers+=($!)
postgres=$!
for _ in {1..100}; do psql -h "$database" -U postgres -Atc 'select 1' >/dev/null 2>&1 && break; sleep 0.1; done
"$programs/pgbench" -i -q -h "$database" -U postgres postgres >/dev/null 2>&1 || fail "pgbench -i"
"$programs/pgbench" -c 4 -T 5 -h "$database" -U postgres postgres >"$folder/pgbench" 2>&1 &
bench=$!
sleep 1
scan postgres "$postgres"
for backend in $(psql -h "$database" -U postgres -Atc "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 2"); do
    scan 'a backend of postgres' "$backend"
done
wait "$bench" || fail "pgbench"
grep -q 'number of failed transactions: 0 ' "$folder/pgbench" || fail "pgbench: $(cat "$folder/pgbench")"
echo "recorded.sh: postgres: $(grep 'transactions actually' "$folder/pgbench"), none failed"
kill -INT "$postgres"
wait "$postgres" || fail "postgres ended with $?"
grep -iE 'terminated by signal|PANIC' "$folder/postgres.log" && fail "postgres"

echo "recorded.sh: $failures failures"
[ "$failures" = 0 ]
