//! Programs that everyone has, scanned while they work: they are not refused, and work on.

use std::process::Command;

use crate::support::{Program, leaks_with};

const USUAL: &[&str] = &[];
const FORK: &[&str] = &["--snapshot=fork"];

/// Asks `program` five times for what it has already done once, scans it each time while it works
/// on that, and expects the same answer. Returns how often it was forked.
fn assert_works_on(mut program: Program, request: &str, options: &[&str]) -> u32 {
    let mut forks = 0;
    let answer = program.ask(request);
    assert_ne!(answer, "");
    for round in 0..5 {
        program.tell(request);
        let report = leaks_with(&program.pid(), options);
        assert!(report["heap"]["blocks"].as_u64() > Some(100), "{report}");
        forks += u32::from(report["capture"]["method"] == "fork");
        assert_eq!(program.line(), answer, "round {round}");
    }
    let (status, rest) = program.finish();
    assert!(status.success(), "{status}");
    assert_eq!(rest, "");
    forks
}

#[test]
fn bash_works_on() {
    bash(USUAL);
}

#[test]
fn bash_works_on_while_it_is_forked() {
    bash(FORK);
}

fn bash(options: &[&str]) -> u32 {
    let script = r#"
        while read -r rounds; do
            declare -A words=()
            for ((i = 0; i < rounds; i++)); do
                words[$((i % 499))]="${words[$(((i * 7) % 499))]:0:40}-$i"
            done
            joined="${words[*]^^}" total=0
            for word in ${joined//-/ }; do total=$(((total + word) % 1000003)); done
            echo "$total ${#joined} $(printf %s "$joined" | wc -c)"
        done"#;
    let bash = Program::start(Command::new("bash").args(["-c", script]));
    assert_works_on(bash, "20000", options)
}

#[test]
fn python_works_on() {
    python(USUAL);
}

#[test]
fn python_works_on_while_it_is_forked() {
    assert!(python(FORK) > 0);
}

fn python(options: &[&str]) -> u32 {
    let script = r"
import json, sys, threading, zlib
def work(rounds, results, number):
    held = {}
    for i in range(rounds):
        held[i * 7919 % 1009] = [str(i) * (i % 50), {'n': i, 'list': list(range(i % 40))}]
    text = json.dumps(held, sort_keys=True)
    assert json.loads(zlib.decompress(zlib.compress(text.encode()))) == json.loads(text)
    results[number] = zlib.crc32(text.encode())
for line in sys.stdin:
    results = [0] * 3
    threads = [threading.Thread(target=work, args=(int(line), results, n)) for n in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(*results, flush=True)
";
    let python = Program::start(Command::new("/usr/bin/python3").args(["-c", script]));
    assert_works_on(python, "40000", options)
}

#[test]
fn sqlite_works_on() {
    sqlite(USUAL);
}

#[test]
fn sqlite_works_on_while_it_is_forked() {
    sqlite(FORK);
}

fn sqlite(options: &[&str]) -> u32 {
    let statements = "create temp table t (a integer primary key, b text, c real); \
        create index i on t (b); \
        insert into t (b, c) with recursive n(x) as \
            (select 1 union all select x + 1 from n where x < 30000) \
            select hex(x * 7919 % 30011) || x, x / 3.0 from n; \
        update t set b = lower(b) || 'x' where a % 5 = 0; delete from t where a % 3 = 0; \
        select count(*), sum(length(b)), max(r), group_concat(substr(b, 1, 2)) like '%3,%' from \
            (select b, row_number() over (partition by substr(b, 1, 3) order by b) r from t); \
        drop table t;";
    let sqlite = Program::start(Command::new("sqlite3").args(["-batch", ":memory:"]));
    assert_works_on(sqlite, statements, options)
}
