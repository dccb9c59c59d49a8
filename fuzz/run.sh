#!/usr/bin/env bash
# Builds the fuzz targets and runs each for as many seconds, from the corpus in fuzz/corpus/. What a
# run finds new goes to fuzz/target/corpus/, and what ends a target to fuzz/artifacts/.
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# It needs a stable Rust and g++ only: the flags are those of `cargo fuzz run --sanitizer none`.
set -euo pipefail
cd "$(dirname "$0")"

[ $# -gt 0 ] || { echo "usage: fuzz/run.sh SECONDS [TARGET...]" >&2; exit 2; }
seconds=$1
# To libFuzzer, 0 is for ever.
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz/run.sh: a number of seconds, not $seconds" >&2; exit 2; }
shift
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed 's/\.rs$//')

host=$(rustc --version --verbose | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# Fuzzing needs no second thread, and finds the same again with one.
export RAYON_NUM_THREADS=1
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0
)
# Naming the host keeps the flags from build scripts and procedural macros.
RUSTFLAGS="${flags[*]}" cargo build --release --target "$host" $(printf -- '--bin %s ' "$@")

status=0
for target in "$@"; do
    mkdir -p "$CARGO_TARGET_DIR/corpus/$target" "artifacts/$target"
    options=(
        -max_total_time="$seconds" -print_final_stats=1
        -rss_limit_mb=2048 -timeout=10 -max_len=65536 -artifact_prefix="artifacts/$target/"
    )
    [ ! -e "dictionaries/$target.dict" ] || options+=(-dict="dictionaries/$target.dict")
    log=$CARGO_TARGET_DIR/$target.log
    echo "fuzz/run.sh: $target for $seconds seconds"
    if "$CARGO_TARGET_DIR/$host/release/$target" "${options[@]}" \
        "$CARGO_TARGET_DIR/corpus/$target" "corpus/$target" >"$log" 2>&1; then
        grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1
        sed -nE 's/^stat::(number_of_executed|slowest|peak)/\1/p' "$log"
    else
        status=1
        tail -n 40 "$log" >&2
        echo "fuzz/run.sh: $target has found something; the input is in fuzz/artifacts/$target/" >&2
    fi
done
exit $status
