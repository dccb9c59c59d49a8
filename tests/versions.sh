#!/usr/bin/env bash
# Checks the walker against other releases of glibc and against the modes of its malloc.
#
#   tests/versions.sh [SEEDS [FOLDER]]        (default: 3 seeds, a temporary folder)
#
# Needs Debian or Ubuntu on x86_64 with gcc, gcc-multilib and python3, and the network unless FOLDER
# has the packages already. It fetches the C libraries of other suites of Debian, for x86-64 and for
# i386, from the mirror that this machine is set up for, unpacks them in FOLDER (nothing is
# installed), and builds two fixtures against each: generator.c, which knows its live and leaked
# blocks, and heap_modes.c, which brings the heap into unusual states. Each runs under each release
# and mode, started once by the kernel, once as an argument of the dynamic loader, which is then the
# program that the process runs, and once statically linked.
#
# Prints a line for each run, and a summary. Exits 1 if rleaks differs from the truth anywhere:
# blocks missing or surplus, usable sizes, leaks. RLEAKS names another rleaks to try. ONLY is a
# regular expression for the lines to run, MACHINES those to run them for.
set -euo pipefail
cd "$(dirname "$0")/.."

seeds=${1:-3}
folder=${2:-$(mktemp --directory)}
[ $# -ge 2 ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"
folder=$(realpath "$folder")
only=${ONLY:-.}
# 2.31, 2.36, 2.41, and the newest.
suites=(bullseye bookworm trixie sid)
read -ra machines <<<"${MACHINES:-x86_64 i386}"

# Environment variables, and the words that heap_modes.c takes. Without words both fixtures run.
# A tunable that a release does not have changes nothing there.
tunables=glibc.malloc
modes=(
    "plain"
    "arena_max=1      MALLOC_ARENA_MAX=1"
    "arena_max=2      MALLOC_ARENA_MAX=2"
    "tcache_count=0   GLIBC_TUNABLES=$tunables.tcache_count=0"
    "tcache_count=50  GLIBC_TUNABLES=$tunables.tcache_count=50"
    "mxfast=160       GLIBC_TUNABLES=$tunables.mxfast=160"
    "threshold=4096   GLIBC_TUNABLES=$tunables.mmap_threshold=4096"
    "threshold=100M   GLIBC_TUNABLES=$tunables.mmap_threshold=100000000"
    "mmap_max=0       GLIBC_TUNABLES=$tunables.mmap_max=0"
    "top_pad=1        GLIBC_TUNABLES=$tunables.top_pad=1:$tunables.trim_threshold=1"
    "perturb=165      MALLOC_PERTURB_=165"
    "hugetlb=1        GLIBC_TUNABLES=$tunables.hugetlb=1"
    "hugetlb=2        GLIBC_TUNABLES=$tunables.hugetlb=2"
    "tcache_max=1M    GLIBC_TUNABLES=$tunables.tcache_max=1048576"
    "tcache_max=4M    GLIBC_TUNABLES=$tunables.tcache_max=4194304:$tunables.tcache_count=50"
    "tcache_max=4M,threshold=4096 GLIBC_TUNABLES=$tunables.tcache_max=4194304:$tunables.mmap_threshold=4096"
    "decorate_maps    GLIBC_TUNABLES=glibc.mem.decorate_maps=1"
    "many             GLIBC_TUNABLES=$tunables.arena_max=3:$tunables.mmap_threshold=8192:$tunables.mxfast=128:$tunables.tcache_count=3"
    "trim             words=trim"
    "sbrk             words=sbrk"
    "blocked          words=blocked"
    "sbrk,blocked     words=sbrk+blocked"
    "imitations       words=imitations"
    "sbrk,blocked,threshold=4096 words=sbrk+blocked GLIBC_TUNABLES=$tunables.mmap_threshold=4096"
    "exited           words=exited"
    "exited,trim,arena_max=2 words=exited+trim MALLOC_ARENA_MAX=2"
    "killed           words=killed"
    "fork             words=fork"
    "fork,blocked     words=fork+blocked"
    "zeros            words=zeros"
    "zeros,fork,tcache_count=0 words=zeros+fork GLIBC_TUNABLES=$tunables.tcache_count=0"
    "namespace        words=namespace"
    "blocked,mmap_max=0 words=blocked GLIBC_TUNABLES=$tunables.mmap_max=0"
    "blocked,hugetlb=2 words=blocked GLIBC_TUNABLES=$tunables.hugetlb=2"
    "blocked,perturb=165 words=blocked+trim MALLOC_PERTURB_=165"
)

# The mirror that apt uses here, and the key that signs it.
mirror() {
    local found
    found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep --max-count=1 '/debian/\?$') || true
    [ -n "$found" ] || { echo "versions.sh: no mirror of Debian is set up here" >&2; exit 2; }
    echo "$found"
}

# Unpacks the C library of a suite into FOLDER/SUITE/root, without apt's own state.
fetch() {
    local suite=$1 here=$folder/$1
    [ -e "$here/root" ] && return
    mkdir -p "$here"/apt/{lists,cache/archives}/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$here/apt/sources.list"
    cat >"$here/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$here/apt/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$here/apt/lists";
Dir::State::Status "/dev/null";
Dir::Cache "$here/apt/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "i386"; };
Acquire::Languages "none";
CONF
    (
        cd "$here"
        export APT_CONFIG=$here/apt/apt.conf
        apt-get update -qq
        apt-get download -qq {libc6,libc6-dev}:{amd64,i386}
        for package in *.deb; do
            dpkg --extract "$package" root.new
        done
        mv root.new root
    )
}

# The folder with the shared libraries of a suite for a machine.
libraries() {
    local place
    for place in "$folder/$1/root/lib" "$folder/$1/root/usr/lib"; do
        if [ -e "$place/$2-linux-gnu/libc.so.6" ]; then
            echo "$place/$2-linux-gnu"
            return
        fi
    done
    echo "versions.sh: no C library for $2 in $folder/$1" >&2
    exit 2
}

# The dynamic loader of a suite for a machine.
loader() {
    local name=ld-linux.so.2
    [ "$2" = i386 ] || name=ld-linux-x86-64.so.2
    echo "$(libraries "$1" "$2")/$name"
}

# Builds the fixtures against the C library of a suite, dynamically and statically linked.
build() {
    local suite=$1 machine=$2 root=$folder/$1/root link=$folder/$1/link-$2 library name flags static
    library=$(libraries "$suite" "$machine")
    rm -rf "$link"
    mkdir -p "$link"
    ln -s "$root/usr/lib/$machine-linux-gnu"/*.[oa] "$link"
    echo "GROUP ( $library/libc.so.6 $link/libc_nonshared.a AS_NEEDED ( $(loader "$suite" "$machine") ) )" >"$link/libc.so"
    for name in pthread dl; do
        # Up to 2.33; later ones have these in libc, and an empty archive.
        [ "$(stat --format %s "$link/lib$name.a" -L)" -lt 100 ] ||
            ln -s "$library/lib$name".so.[0-9] "$link/lib$name.so"
    done
    flags=(-O1 -g -pthread -isystem "$root/usr/include" -isystem "$root/usr/include/$machine-linux-gnu"
        -B"$link" -L"$link")
    [ "$machine" = x86_64 ] || flags+=(-m32)
    static=(-static)
    # The compiler's unwinder calls it, from 2.35 on; no fixture unwinds.
    grep --quiet _dl_find_object "$link/libc.a" || static+=(-Wl,--defsym=_dl_find_object=abort)
    for name in generator heap_modes; do
        gcc "${flags[@]}" -Wl,-rpath-link,"$library" -Wl,-rpath,"$library" \
            -Wl,--dynamic-linker="$(loader "$suite" "$machine")" \
            -o "$folder/$suite/$name-$machine" "fixtures/$name.c" -ldl
        # Its warning is about dlmopen(), which no static program of ours calls.
        gcc "${flags[@]}" "${static[@]}" -o "$folder/$suite/$name-$machine-static" "fixtures/$name.c" -ldl \
            2>"$folder/$suite/static.log" || { cat "$folder/$suite/static.log" >&2; exit 2; }
    done
}

# Says whether programs that this machine's linker has linked with the static library of a suite
# run: the linker may be too old for it.
runs_static() {
    "$folder/$1/generator-$2-static" 1 2 100 </dev/null >/dev/null 2>&1
}

# The release, from what the library says when it is run.
release() {
    "$(loader "$1" "$2")" "$(libraries "$1" "$2")/libc.so.6" |
        sed --quiet '1s/.*release version \([0-9.]*[0-9]\).*/\1/p'
}

# check RELEASE STARTED_BY MODE SEED COMMAND...: runs one case, and counts it.
check() {
    local what="$1 $2 $3 seed $4" result
    shift 4
    [[ $what =~ $only ]] || return 0
    runs[$version]=$((${runs[$version]:-0} + 1))
    if result=$(python3 tests/versions/check.py "$rleaks" "$@" 2>&1); then
        exact[$version]=$((${exact[$version]:-0} + 1))
    fi
    echo "$what: $result"
}

# Runs a mode, given as a line of the table, with all seeds and all ways to start.
run_mode() {
    local suite=$1 machine=$2 mode=$3 words= setting environment=() seed suffix
    shift 3
    for setting; do
        case $setting in
        words=*) words=${setting#words=} ;;
        *) environment+=("$setting") ;;
        esac
    done
    for ((seed = 1; seed <= seeds; seed++)); do
        for started in kernel loader static; do
            command=(env "${environment[@]}")
            suffix=$machine
            case $started in
            loader) command+=("$(loader "$suite" "$machine")" --library-path "$(libraries "$suite" "$machine")") ;;
            # A static program loads no second libc.
            static) suffix+=-static && "$static_runs" && [ "$words" != namespace ] || continue ;;
            esac
            [ -n "$words" ] ||
                check "$version" "$started" "$mode generator" "$seed" "${command[@]}" \
                    "$folder/$suite/generator-$suffix" "$seed" $((seed % 7)) $((1000 + seed % 10 * 500))
            check "$version" "$started" "$mode heap_modes" "$seed" "${command[@]}" \
                "$folder/$suite/heap_modes-$suffix" "${words:-plain}" "$seed" $((seed * 3 % 13)) $((1000 * (seed % 9 + 1)))
        done
    done
}

rleaks=${RLEAKS:-target/release/rleaks}
[ -n "${RLEAKS:-}" ] || cargo build --release --quiet
declare -A runs exact
versions=()
for suite in "${suites[@]}"; do
    fetch "$suite"
    for machine in "${machines[@]}"; do
        build "$suite" "$machine"
        version="$(release "$suite" "$machine") $machine"
        static_runs=true
        runs_static "$suite" "$machine" ||
            { static_runs=false && echo "$version: static programs do not run as this linker links them: left out"; }
        versions+=("$version")
        for mode in "${modes[@]}"; do
            # shellcheck disable=SC2086 # The columns of the table are words.
            run_mode "$suite" "$machine" $mode
        done
    done
done

status=0
for version in "${versions[@]}"; do
    echo "glibc $version: ${exact[$version]:-0} of ${runs[$version]:-0} runs exact"
    [ "${exact[$version]:-0}" = "${runs[$version]:-0}" ] || status=1
done
exit $status
