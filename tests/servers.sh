#!/bin/bash
# Scans nginx, PostgreSQL and redis under load, and confirms every reported leak once they are idle.
#
#   tests/servers.sh [ROUNDS [OPTION]...]
#
# ROUNDS is 20 if it is not given; that takes some minutes. The options are those of a scan under load: with
# --snapshot=fork no child may be left of any process, and when they are idle the leaks are the same as with a copy.
# It needs Debian's nginx-light, postgresql, redis-server, wrk and gdb
# (apt-get install --no-install-recommends), installs nothing, and uses no server that runs already: it starts its
# own ones in a temporary folder, on ports of 127.0.0.1 (NGINX_PORT, POSTGRES_PORT, REDIS_PORT), and ends those alone.
# Run it as root: PostgreSQL runs as `postgres`. RLEAKS names the binary.
# Exit status: 0 no request failed and all leaks are confirmed, 1 otherwise, 2 it could not be tried.
set -u
rounds=${1:-20}
options=("${@:2}")
here=$(dirname "$(realpath "$0")")
export RLEAKS=${RLEAKS:-$here/../target/release/rleaks}
nginx_port=${NGINX_PORT:-18080} postgres_port=${POSTGRES_PORT:-15432} redis_port=${REDIS_PORT:-16379}
postgres_bin=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -1)
nginx=$(PATH=$PATH:/usr/sbin type -p nginx)
failures=0
declare -A started=()

could_not() {
    echo "$*" >&2
    exit 2
}

failed() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

for tool in "$nginx" "$RLEAKS" "$postgres_bin/pgbench" redis-server redis-benchmark wrk gcore setpriv; do
    type -p "$tool" >/dev/null || could_not "${tool:-nginx} is missing"
done
folder=$(mktemp -d) || exit 2
chmod 755 "$folder"

end_all() {
    for pid in "${!started[@]}"; do
        kill -INT "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    rm -rf "$folder"
}
trap end_all EXIT

as_postgres() {
    setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
}

# The process and its children.
tree() {
    echo "$1"
    cat "/proc/$1/task/"*/children 2>/dev/null | tr ' ' '\n' | grep .
}

# Scans each of the processes ROUNDS times while "$load" runs; prints how many scans there were and the longest pause.
scan_under_load() {
    local name=$1 load=$2 root=$3 scans=0 errors=0 longest=0 forks=0 pause
    for ((round = 0; round < rounds; round++)); do
        for pid in $(tree "$root"); do
            "$RLEAKS" "$pid" --json "${options[@]}" >"$folder/report.json" 2>"$folder/errors"
            if [ $? -gt 1 ]; then
                # A backend may end at any time.
                [ -d "/proc/$pid" ] && failed "$name: scan of $pid: $(cat "$folder/errors")" && errors=$((errors + 1))
                continue
            fi
            scans=$((scans + 1))
            grep -q '"method": *"fork"' "$folder/report.json" && forks=$((forks + 1))
            pause=$(grep -o '"pause_seconds": *[0-9.e-]*' "$folder/report.json" | head -1 | sed 's/.*: *//')
            longest=$(awk -v a="$longest" -v b="${pause:-0}" 'BEGIN { print (b > a ? b : a) }')
        done
        kill -0 "$load" 2>/dev/null || { failed "$name: the load ended before the scans"; break; }
    done
    echo "$name: $scans scans under load ($forks by fork), $errors failed, longest pause $longest s"
    no_zombie_is_left "$name" "$root"
}

# Children that rleaks made would stay until the process that has them ends.
no_zombie_is_left() {
    local child
    for pid in $(tree "$2"); do
        for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do
            grep -q '^State:.Z' "/proc/$child/status" 2>/dev/null && sleep 1 &&
                grep -q '^State:.Z' "/proc/$child/status" 2>/dev/null && failed "$1: $pid has the zombie $child"
        done
    done
}

# Addresses and sizes of the leaks of a process, by one way to keep its memory.
leaks_by() {
    "$RLEAKS" "$1" --list --snapshot="$2" 2>/dev/null | grep -o '^Leak: 0x[0-9a-f]* *size=[0-9]*' | sort
}

# An idle process has the same leaks by a fork as by a copy.
compare_idle() {
    local name=$1 attempt
    for pid in $(tree "$2"); do
        for attempt in 1 2 3; do
            [ "$(leaks_by "$pid" fork)" = "$(leaks_by "$pid" copy)" ] && break
            [ $attempt = 3 ] && [ -d "/proc/$pid" ] && failed "$name: the leaks of $pid differ between fork and copy"
        done
    done
}

# An idle server must not change between the scan and the core: it is tried a few times.
confirm_idle() {
    local name=$1 root=$2 status
    for pid in $(tree "$root"); do
        for attempt in 1 2 3; do
            "$here/oracle/check.sh" "$pid" "$name-$pid" >"$folder/confirmed" 2>&1
            status=$?
            [ $status = 2 ] || break
        done
        # Servers start processes that end by themselves.
        [ -d "/proc/$pid" ] || continue
        tail -1 "$folder/confirmed"
        [ $status = 0 ] || failed "$name: the leaks of $pid are not confirmed ($(tr '\0' ' ' <"/proc/$pid/cmdline"))"
    done
}

wait_for_port() {
    for ((i = 0; i < 200; i++)); do
        (: >"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.05
    done
    could_not "nothing listens on port $1: $(tail -3 "$folder"/*.log)"
}

run_nginx() {
    local load
    mkdir "$folder/www" && head -c 20000 /dev/urandom | base64 >"$folder/www/index.html"
    cat >"$folder/nginx.conf" <<CONFIG
daemon off;
user nobody nogroup;
worker_processes 2;
pid $folder/nginx.pid;
error_log $folder/nginx.log;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path $folder/body; proxy_temp_path $folder/proxy; fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi; scgi_temp_path $folder/scgi;
    gzip on;
    server { listen 127.0.0.1:$nginx_port; root $folder/www; }
}
CONFIG
    "$nginx" -p "$folder" -c "$folder/nginx.conf" 2>"$folder/nginx-start.log" &
    local server=$!
    started[$server]=1
    wait_for_port "$nginx_port"
    wrk -t1 -c32 -d3600s --timeout 10s "http://127.0.0.1:$nginx_port/" >"$folder/wrk.log" 2>&1 &
    load=$!
    started[$load]=1
    scan_under_load nginx "$load" "$server"
    kill -INT "$load" && wait "$load"
    unset "started[$load]"
    grep -E 'requests in|Latency' "$folder/wrk.log"
    grep -q 'requests in' "$folder/wrk.log" || failed "nginx: no figures of the load: $(cat "$folder/wrk.log")"
    grep -E 'Socket errors|Non-2xx' "$folder/wrk.log" && failed "nginx: requests failed"
    compare_idle nginx "$server"
    confirm_idle nginx "$server"
}

run_postgres() {
    local load server pgbench=("$postgres_bin/pgbench" -h 127.0.0.1 -p "$postgres_port" -U postgres)
    mkdir "$folder/sockets" "$folder/data" && chown postgres "$folder/sockets" "$folder/data"
    as_postgres "$postgres_bin/initdb" -D "$folder/data" -A trust -U postgres >"$folder/initdb.log" 2>&1 ||
        could_not "initdb: $(tail -3 "$folder/initdb.log")"
    # setpriv becomes the server: its pid is the server's.
    setpriv --reuid=postgres --regid=postgres --clear-groups -- "$postgres_bin/postgres" -D "$folder/data" \
        -p "$postgres_port" -k "$folder/sockets" -c listen_addresses=127.0.0.1 -c autovacuum=off >"$folder/postgres.log" 2>&1 &
    server=$!
    started[$server]=1
    wait_for_port "$postgres_port"
    for ((i = 0; i < 200; i++)); do
        "$postgres_bin/pg_isready" -q -U postgres -h 127.0.0.1 -p "$postgres_port" && break
        sleep 0.05
    done
    # Until here it refused connections, and said so.
    local lines
    lines=$(wc -l <"$folder/postgres.log")
    "${pgbench[@]}" -i -q postgres >"$folder/pgbench-init.log" 2>&1 || could_not "pgbench: $(tail -3 "$folder/pgbench-init.log")"
    # Without -C nothing connects anew: the backends live as long as the load. Its length is fixed; the scans must fit.
    "${pgbench[@]}" -c 8 -j 1 -T "${LOAD_SECONDS:-$((rounds * 6 + 20))}" postgres >"$folder/pgbench.log" 2>&1 &
    load=$!
    started[$load]=1
    scan_under_load postgres "$load" "$server"
    wait "$load" || failed "postgres: pgbench: $(tail -3 "$folder/pgbench.log")"
    unset "started[$load]"
    grep -E 'actually processed|failed|tps' "$folder/pgbench.log"
    grep -q 'number of failed transactions: 0 ' "$folder/pgbench.log" || failed "postgres: transactions failed"
    tail -n +$((lines + 1)) "$folder/postgres.log" | grep -E 'FATAL|PANIC|ERROR|terminated' && failed "postgres: its log has errors"
    compare_idle postgres "$server"
    confirm_idle postgres "$server"
}

# It uses jemalloc, so its blocks are those of the malloc stack log. redis-benchmark ends with status 1 at the first
# request that fails.
run_redis() {
    local server load
    (cd "$folder" && exec "$RLEAKS" record -- redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no) \
        >"$folder/redis.log" 2>&1 &
    server=$!
    started[$server]=1
    wait_for_port "$redis_port"
    while redis-benchmark -h 127.0.0.1 -p "$redis_port" -q -c 20 -n 20000 -r 10000 -d 100 -t set,get,lpush,lpop,sadd,hset; do
        echo round
    done >"$folder/redis-load.log" 2>&1 &
    load=$!
    started[$load]=1
    scan_under_load redis "$load" "$server"
    kill -0 "$load" 2>/dev/null || failed "redis: a request failed: $(tail -3 "$folder/redis-load.log")"
    kill "$load" && wait "$load" 2>/dev/null
    unset "started[$load]"
    # The benchmark that runs comes to its end by itself.
    while redis-cli -p "$redis_port" client list 2>/dev/null | grep -vq 'cmd=client'; do sleep 0.2; done
    grep -Ei 'error|failed' "$folder/redis-load.log" && failed "redis: requests failed"
    echo "redis: $(grep -c '^round' "$folder/redis-load.log") rounds of redis-benchmark"
    compare_idle redis "$server"
}

run_nginx
run_postgres
run_redis
echo "$failures failures"
[ "$failures" = 0 ]
