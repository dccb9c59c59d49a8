#!/bin/bash
# Scans a process with rleaks, takes a core of it, and confirms every leak on the core by brute force.
#
#   tests/oracle/check.sh PID [NAME]
#
# The process must be idle meanwhile (blocked in read, say): the core is taken after the scan, and must show the
# same heap. That is checked: the blocks before and after the core must be the same. RLEAKS names the binary.
# Exit status: 0 all leaks are confirmed, 1 some are not, 2 it could not be tried.
set -u
pid=$1 name=${2:-$(cat "/proc/$1/comm")}
here=$(dirname "$(realpath "$0")")
rleaks=${RLEAKS:-$here/../../target/debug/rleaks}
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT

could_not() {
    echo "$name: $*" >&2
    exit 2
}

"$rleaks" "$pid" --json >"$folder/report.json"
[ $? -le 1 ] || could_not "rleaks failed"
"$rleaks" heap "$pid" --json >"$folder/heap.json" || could_not "rleaks heap failed"
gcore -o "$folder/core" "$pid" >"$folder/gcore.log" 2>&1 || could_not "gcore failed: $(tail -1 "$folder/gcore.log")"
"$rleaks" heap "$pid" --json >"$folder/after.json" || could_not "rleaks heap failed"
python3 - "$folder" <<'END' || could_not "its heap changed meanwhile: it was not idle"
import json, sys
before, after = (json.load(open(f"{sys.argv[1]}/{name}.json"))["blocks"] for name in ("heap", "after"))
sys.exit(before != after)
END
python3 "$here/brute_force.py" --name "$name" "$folder/core.$pid" "$folder/report.json" "$folder/heap.json"
