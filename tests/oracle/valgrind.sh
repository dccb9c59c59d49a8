#!/bin/bash
# Compares what fixtures say they leak with what valgrind finds: blocks, definitely and indirectly lost.
#
#   tests/oracle/valgrind.sh [FIXTURE]...     default: those whose leaks valgrind counts the same way
#
# valgrind's allocator gives the size that was asked for and places blocks elsewhere, so only the numbers of
# blocks are compared. A cycle of n blocks is to valgrind 1 definitely and n - 1 indirectly lost blocks.
set -u
here=$(dirname "$(realpath "$0")")
fixtures=$here/../../fixtures
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
failed=0

lost() { # KIND: the number of blocks lost in this way
    sed -n "s/.*$1 lost: [0-9,]* bytes in \([0-9,]*\) blocks.*/\1/p" "$folder/valgrind" | tr -d ,
}

[ $# -gt 0 ] || set -- kind_root_leak.c kind_cycle.c kind_indirect.c
for file in "$@"; do
    cc -O1 -g -pthread -o "$folder/program" "$fixtures/$file" || exit 2
    valgrind --leak-check=full --show-leak-kinds=definite,indirect --log-file="$folder/valgrind" \
        "$folder/program" </dev/null >"$folder/truth" || exit 2
    said=$(grep -c '^leak ' "$folder/truth")
    definitely=$(lost definitely) indirectly=$(lost indirectly)
    found=$((${definitely:-0} + ${indirectly:-0}))
    echo "$file: it says $said leaks, valgrind finds $found"
    [ "$said" = "$found" ] || failed=1
done
exit $failed
