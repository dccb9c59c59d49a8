//! `rleaks --at-exit`: programs of all kinds end as they would, and their leaks are those of their end.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{
    Build, Program, Shared, addresses, compile, compile_as, functions, number_from_environment,
    parse_address, rleaks_command, text, unprivileged,
};

/// What came of a command that rleaks ran.
struct Run {
    output: Output,
    /// The documents of the reports.
    reports: Vec<Value>,
}

impl Run {
    /// Runs `command`, and rleaks with these options on it.
    fn new(options: &[&str], command: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let output = at_exit(options)
            .arg(format!("--json={}", path.display()))
            .arg("--")
            .args(command)
            .output()
            .unwrap();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let reports = serde_json::Deserializer::from_str(&text).into_iter();
        Self {
            output,
            reports: reports.map(Result::unwrap).collect(),
        }
    }

    fn status(&self) -> Option<i32> {
        self.output.status.code()
    }

    fn said(&self) -> String {
        text(&self.output.stderr)
    }

    /// The only report.
    fn report(&self) -> &Value {
        assert_eq!(self.reports.len(), 1, "{}", self.said());
        &self.reports[0]
    }

    fn leaks(&self) -> BTreeMap<u64, u64> {
        addresses(&self.report()["leaks"])
    }
}

/// rleaks with options, without the command, to which more options can be added.
fn at_exit(options: &[&str]) -> Command {
    let mut command = rleaks_command();
    command.arg("--at-exit").args(options);
    command
}

/// The blocks that a fixture has said to be `what`.
fn said(output: &Output, what: &str) -> BTreeMap<u64, u64> {
    let text = text(&output.stdout);
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|words| words[0] == what)
        .map(|words| (parse_address(words[1]), words[2].parse().unwrap()))
        .collect()
}

fn ends() -> String {
    compile("ends.c").display().to_string()
}

/// Exactly what the fixture has leaked is reported: destructors have run, and what only the frame or a
/// register of another thread references is none.
fn assert_true(run: &Run, status: u8) {
    assert_eq!(run.status(), Some(1), "{}", run.said());
    let truth = said(&run.output, "leak");
    let live = said(&run.output, "live");
    assert_eq!(run.leaks(), truth, "live: {live:x?}");
    assert_eq!(run.report()["target"]["command_status"], status);
    assert_eq!(run.report()["capture"]["method"], "copy");
}

#[test]
fn every_way_to_end_by_the_c_library_is_seen() {
    let program = ends();
    for (how, leaks) in [
        ("return", 2),
        ("exit", 2),
        ("_exit", 1),
        ("_Exit", 1),
        ("quick_exit", 1),
    ] {
        let run = Run::new(&[], &[&program, how, "7"]);
        assert_true(&run, 7);
        assert_eq!(run.leaks().len(), leaks, "{how}");
        assert_eq!(run.report()["capture"]["threads"], 3, "{how}");
        assert_eq!(run.said(), "", "{how}");
    }
}

#[test]
fn leaks_come_with_the_stacks_that_allocated_them() {
    let run = Run::new(&[], &[&ends(), "exit", "0"]);
    assert_true(&run, 0);
    for leak in run.report()["leaks"].as_array().unwrap() {
        let functions = functions(run.report(), leak);
        let from = functions.iter().position(|name| name == "build").unwrap();
        assert_eq!(functions[from + 1], "main", "{functions:?}");
    }
    let run = Run::new(&["--no-stacks"], &[&ends(), "exit", "0"]);
    assert_true(&run, 0);
}

#[test]
fn process_that_ends_with_its_last_thread_is_seen() {
    let run = Run::new(&[], &[&ends(), "pthread_exit", "7"]);
    let leaks = said(&run.output, "leak");
    let leaks: BTreeMap<_, _> = leaks.into_iter().filter(|(at, _)| *at != 0).collect();
    assert_eq!(run.leaks(), leaks);
    assert_eq!(run.report()["target"]["command_status"], 0);
}

#[test]
fn what_the_recorder_does_not_see_is_seen_on_signal() {
    let program = ends();
    for (how, status) in [
        ("exit_group", 7),
        ("abort", 134),
        ("crash", 139),
        ("kill", 137),
        ("terminate", 143),
        ("return", 7),
    ] {
        let run = Run::new(&["--on-signal"], &[&program, how, "7"]);
        assert_true(&run, status);
        assert_eq!(run.said(), "", "{how}");
    }
}

#[test]
fn what_was_not_seen_is_an_error_that_says_so() {
    let program = ends();
    for (how, status, reason) in [
        ("exit_group", 7, "by a system call of its own"),
        ("abort", 134, "by SIGABRT, which only --on-signal sees"),
        ("kill", 137, "by SIGKILL, which only --on-signal sees"),
    ] {
        let run = Run::new(&[], &[&program, how, "7"]);
        assert_eq!(run.status(), Some(2), "{how}");
        assert!(run.reports.is_empty(), "{how}");
        let said = run.said();
        assert!(said.contains("no report could be made"), "{said}");
        assert!(said.contains(reason), "{said}");
        assert!(
            said.ends_with(&format!("ended with status {status}\n")),
            "{said}"
        );
    }
    let run = Run::new(&[], &["env", "-u", "LD_PRELOAD", &program, "return", "7"]);
    assert_eq!(run.status(), Some(2));
}

#[test]
fn streamed_process_stands_at_its_end_until_it_was_read() {
    let run = Run::new(&["--snapshot=stream"], &[&ends(), "exit", "0"]);
    assert_eq!(run.leaks(), said(&run.output, "leak"), "{}", run.said());
    assert_eq!(run.report()["capture"]["method"], "stream");
}

#[test]
fn programs_that_cannot_be_recorded_are_scanned_all_the_same() {
    for (build, reason) in [
        (Build::Static, "it is statically linked"),
        (Build::StaticPie, "it is statically linked"),
        (Build::I386, "it is a program for i386"),
        (Build::I386Static, "it is a program for i386"),
    ] {
        let program = compile_as("ends.c", build).display().to_string();
        let run = Run::new(&[], &[&program, "return", "9"]);
        assert_true(&run, 9);
        let said = run.said();
        assert!(
            said.contains(" is not recorded: ") && said.contains(reason),
            "{said}"
        );
        assert!(said.contains("no call stacks"), "{said}");
    }
}

/// The status is the command's own, and so is what it prints.
fn assert_as_without(command: &[&str]) {
    let alone = Command::new(command[0])
        .args(&command[1..])
        .output()
        .unwrap();
    let status = alone.status.code();
    let status = status.unwrap_or_else(|| 128 + alone.status.signal().unwrap());
    for options in [&["--no-content"][..], &["--on-signal"]] {
        let run = Run::new(options, command);
        assert_eq!(text(&run.output.stdout), text(&alone.stdout), "{command:?}");
        assert_eq!(run.said(), text(&alone.stderr), "{command:?}");
        assert_eq!(
            run.report()["target"]["command_status"],
            status,
            "{command:?}"
        );
        let leaks = !run.leaks().is_empty();
        assert_eq!(run.status(), Some(if leaks { 1 } else { status }));
    }
}

#[test]
fn shells_end_as_they_would_without_rleaks() {
    for script in [
        "exit 3",
        "echo out; echo err >&2; false",
        "printf 'a\\nb\\n' | sort -r | tee /dev/stderr | wc -l; exit ${PIPESTATUS[1]}",
        "trap 'echo bye; exit 5' EXIT; exit 4",
        "trap 'echo usr1' USR1; kill -USR1 $$; (exit 8)",
        "x=$(for i in 1 2 3; do (exit $i); echo $?; done); echo $x; exec sh -c 'echo $0; exit 6' name",
        "cd /; exec 3>&1; { echo three >&3; } | cat; ulimit -c 0; exit 0",
    ] {
        assert_as_without(&["bash", "-c", script]);
    }
}

#[test]
fn python_ends_as_it_would_without_rleaks() {
    for script in [
        "import atexit; atexit.register(print, 'handler'); print('main')",
        "import sys; sys.stderr.write('problem'); sys.exit(3)",
        "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "import threading; threading.Timer(0.1, print, ['late']).start()",
        "import os; os._exit(4)",
        "import os; os.fork() or os._exit(5); print(os.WEXITSTATUS(os.wait()[1]))",
        "import subprocess; print(subprocess.run(['sh', '-c', 'exit 9']).returncode)",
        "raise SystemError('an error')",
    ] {
        assert_as_without(&["/usr/bin/python3", "-c", script]);
    }
}

#[test]
fn python_that_a_signal_ends_is_seen_on_signal() {
    for (script, status) in [
        ("import os; os.abort()", 134),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM); input()",
            143,
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL); input()",
            137,
        ),
        ("import ctypes; ctypes.string_at(8)", 139),
    ] {
        let script = format!("import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0)); {script}");
        let run = Run::new(&["--on-signal"], &["/usr/bin/python3", "-c", &script]);
        assert_eq!(
            run.report()["target"]["command_status"],
            status,
            "{}",
            run.said()
        );
    }
}

/// All threads are there with their registers, however many there are and whatever they do.
#[test]
fn threads_of_all_kinds_come_to_stand_at_the_end() {
    let program = compile("ends_threads.c").display().to_string();
    for (count, work, way) in [
        ("1000", "sleep", "return"),
        ("20", "spin", "return"),
        ("4", "allocate", "return"),
        ("4", "allocate", "thread"),
        ("4", "start", "return"),
        ("4", "start", "thread"),
        ("4", "start", "execute"),
    ] {
        for options in [&[][..], &["--on-signal"]] {
            let run = Run::new(options, &[&program, count, work, way]);
            let report = run.report();
            let of = format!("{count} {work} {way} {options:?}: {report}");
            assert_eq!(report["target"]["command_status"], 3, "{of}");
            let threads = report["capture"]["threads"].as_u64().unwrap();
            let least = count.parse::<u64>().unwrap() + 1;
            if work == "start" {
                assert!(threads >= least, "{of}");
            } else {
                assert_eq!(threads, least + u64::from(way == "thread"), "{of}");
            }
            assert!(
                !report["warnings"].to_string().contains("thread_asleep"),
                "{of}"
            );
        }
    }
}

#[test]
fn leak_status_is_the_status_where_there_are_leaks() {
    let run = Run::new(&["--leak-status=42"], &[&ends(), "exit", "7"]);
    assert_eq!(run.status(), Some(42), "{}", run.said());
    let run = Run::new(&["--leak-status=0"], &[&ends(), "exit", "7"]);
    assert_eq!(run.status(), Some(0), "{}", run.said());
    let run = Run::new(&["--leak-status=42"], &["bash", "-c", "exit 7"]);
    assert_eq!(run.status(), Some(7), "{}", run.said());
}

#[test]
fn each_process_is_reported_with_follow_children() {
    let program = ends();
    let script = format!(
        "{program} return 4; {program} _exit 5 | cat; (exec {program} exit 6); exec bash -c 'exit 3'"
    );
    let run = Run::new(&["--follow-children"], &["bash", "-c", &script]);
    assert_eq!(run.status(), Some(1), "{}", run.said());
    let of = |name: &str| {
        let of_name = run.reports.iter().filter(|r| r["target"]["name"] == name);
        let status = |report: &Value| report["target"]["command_status"].as_u64().unwrap();
        of_name.map(status).collect::<Vec<_>>()
    };
    let program = Path::new(&program).file_name().unwrap().to_str().unwrap();
    let program = program.get(..15).unwrap_or(program);
    assert_eq!(of(program), [4, 5, 6], "{}", run.said());
    assert_eq!(of("cat"), [0]);
    assert!(of("bash").contains(&3), "{:?}", of("bash"));
    let alone = Run::new(&[], &["bash", "-c", &script]);
    assert_eq!(alone.report()["target"]["command_status"], 3);
}

#[test]
fn command_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let no_program = folder.path().join("no-program");
    fs::write(&no_program, "").unwrap();
    for (command, reason) in [
        (
            "no-such-program-here",
            "no program is named no-such-program-here",
        ),
        ("/no/such/program", "there is no program /no/such/program"),
        (no_program.to_str().unwrap(), "cannot be run"),
        (folder.path().to_str().unwrap(), "cannot be run"),
    ] {
        for options in [&["--at-exit"][..], &["record"]] {
            let output = rleaks_command()
                .args(options)
                .args(["--", command])
                .output();
            let output = output.unwrap();
            assert_eq!(output.status.code(), Some(2), "{command}");
            assert_eq!(text(&output.stdout), "");
            assert!(text(&output.stderr).contains(reason), "{output:?}");
        }
    }
    // It is a script for no interpreter.
    fs::write(&no_program, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&no_program, Permissions::from_mode(0o755)).unwrap();
    let run = Run::new(&[], &[no_program.to_str().unwrap()]);
    assert_eq!(run.status(), Some(2));
    assert!(
        run.said().contains("there is no /no/such/interpreter, "),
        "{}",
        run.said()
    );
    // What only the kernel finds out is told as well.
    let mut program = fs::read(ends()).unwrap();
    let loader = b"/ld-linux-x86-64.so.2\0";
    let at = program
        .windows(loader.len())
        .position(|w| w == loader)
        .unwrap();
    program[at + loader.len() - 2] = b'9';
    fs::write(&no_program, program).unwrap();
    for options in [&[][..], &["--on-signal"]] {
        let run = Run::new(options, &[no_program.to_str().unwrap()]);
        assert_eq!(run.status(), Some(2), "{}", run.said());
        assert!(
            run.said().starts_with("rleaks: cannot run /"),
            "{}",
            run.said()
        );
    }
}

#[test]
fn file_of_the_report_is_checked_before_the_command_runs() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let output = rleaks_command()
        .args([
            "--at-exit",
            "--json=/no/such/folder/report.json",
            "--",
            "touch",
        ])
        .arg(&trace)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!trace.exists());
}

/// A program that says `ready`, counts its signals, and ends with status 4 after so many.
const COUNTER: &str = "import os, signal, sys, time\n\
    seen = []\n\
    def count(*_):\n    seen.append(1)\n    os.write(1, b'%d\\n' % len(seen))\n\
    for name in 'SIGTERM SIGHUP SIGUSR1 SIGUSR2'.split():\n    signal.signal(signal.Signals[name], count)\n\
    os.write(1, b'ready\\n')\n\
    while len(seen) < 4: time.sleep(0.05)\n\
    sys.exit(4)";

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

#[test]
fn signals_to_rleaks_reach_the_command_once() {
    for options in [&["--quiet"][..], &["--quiet", "--on-signal"]] {
        let mut command = at_exit(options);
        command.args(["--leak-status=4", "--", "/usr/bin/python3", "-c", COUNTER]);
        let mut program = Program::start(&mut command);
        assert_eq!(program.line(), "ready");
        let signals = [
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ];
        for (signal, count) in signals.into_iter().zip(1..) {
            send(program.id(), signal);
            assert_eq!(program.line(), count.to_string());
        }
        let (status, report) = program.finish();
        assert_eq!(status.code(), Some(4));
        assert!(report.starts_with("Process "), "{report}");
    }
}

#[test]
fn command_that_a_signal_to_rleaks_ends_has_its_status() {
    let mut program = Program::start(at_exit(&["--quiet", "--on-signal"]).args([
        "--leak-status=9",
        "--",
        "/usr/bin/python3",
        "-c",
        "import time; print('ready', flush=True); time.sleep(99)",
    ]));
    assert_eq!(program.line(), "ready");
    send(program.id(), Signal::SIGTERM);
    let (status, report) = program.finish();
    assert!(matches!(status.code(), Some(9 | 143)), "{status} {report}");
    assert!(report.starts_with("Process "), "{report}");
}

/// The state letter of a process.
fn state(pid: u32) -> char {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status
        .lines()
        .find_map(|line| line.strip_prefix("State:\t"));
    state.and_then(|state| state.chars().next()).unwrap_or('?')
}

fn wait_until(otherwise: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{otherwise}");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn command_and_rleaks_are_stopped_and_continued_together() {
    for options in [&["--quiet"][..], &["--quiet", "--on-signal"]] {
        let script = "echo $$; read _; exit 3";
        let mut command = at_exit(options);
        command.args(["--leak-status=3", "--", "bash", "-c", script]);
        let mut program = Program::start(&mut command);
        let rleaks = program.id();
        let pid: u32 = program.line().parse().unwrap();
        let are =
            |wanted: [&str; 2]| wanted[0].contains(state(pid)) && wanted[1].contains(state(rleaks));
        // Of the command, by somebody else.
        send(pid, Signal::SIGSTOP);
        wait_until("they do not stop", || are(["Tt", "T"]));
        send(pid, Signal::SIGCONT);
        wait_until("they do not go on", || are(["SR", "SR"]));
        // Of rleaks, as a shell without job control of its own may do.
        send(rleaks, Signal::SIGTSTP);
        wait_until("they do not stop", || are(["Tt", "T"]));
        send(rleaks, Signal::SIGCONT);
        wait_until("they do not go on", || are(["SR", "SR"]));
        program.tell("");
        let (status, _) = program.finish();
        assert_eq!(status.code(), Some(3));
    }
}

/// Neither the recorder nor a tracer may come between a program and what its file gives it.
#[test]
fn program_with_privileges_of_its_own_keeps_them() {
    let (shared, rleaks) = Shared::with_rleaks();
    let id = shared.add(Path::new("/usr/bin/id"), "id");
    fs::set_permissions(&id, Permissions::from_mode(0o4755)).unwrap();
    for options in [
        &["record"][..],
        &["--at-exit"],
        &["--at-exit", "--on-signal"],
    ] {
        let mut command = unprivileged(&rleaks);
        command.args(options).arg("--").arg(&id).arg("-u");
        command
            .env("TMPDIR", shared.path())
            .env_remove("XDG_RUNTIME_DIR");
        shared.open_to_all();
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(text(&output.stdout), "0\n", "{options:?}: {said}");
        assert!(said.contains("(set-user-ID)"), "{said}");
        let is_record = options == ["record"];
        assert_eq!(
            output.status.code(),
            Some(if is_record { 0 } else { 2 }),
            "{said}"
        );
        assert_eq!(said.contains("ran unobserved"), !is_record, "{said}");
    }
}

#[test]
fn other_users_can_run_and_scan_programs_of_their_own() {
    let (shared, rleaks) = Shared::with_rleaks();
    shared.open_to_all();
    let program = shared.add(&compile("ends.c"), "ends");
    for options in [&[][..], &["--on-signal"]] {
        let mut command = unprivileged(&rleaks);
        command
            .env("TMPDIR", shared.path())
            .env_remove("XDG_RUNTIME_DIR");
        let command = command
            .arg("--at-exit")
            .args(options)
            .args(["--list", "--"])
            .arg(&program);
        let output = command.args(["exit", "0"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        for at in said(&output, "leak").keys() {
            assert!(
                text(&output.stdout).contains(&format!("Leak: {at:#x} ")),
                "{output:?}"
            );
        }
    }
}

/// A number below `limit`, in no simple order.
fn jitter(round: u64, limit: u64) -> u64 {
    (u64::from(std::process::id()) * 911 + round.wrapping_mul(6_364_136_223_846_793_005) / 65_536)
        % limit.max(1)
}

/// The command goes on to its end, with all that it would have printed, whenever rleaks is killed.
fn goes_on_when_rleaks_is_killed(options: &[&str]) {
    let script = "import threading, os, sys, time\n\
        for n in range(4): threading.Thread(target=time.sleep, args=(0.05,)).start()\n\
        held = [str(n) * 50 for n in range(3000)]\n\
        open(sys.argv[1], 'a').write('worked\\n')\n\
        import atexit; atexit.register(lambda: open(sys.argv[1], 'a').write('ended'))";
    let folder = tempfile::tempdir().unwrap();
    let run = |path: &Path| {
        let mut command = at_exit(options);
        command
            .args(["--", "/usr/bin/python3", "-c", script])
            .arg(path);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let start = Instant::now();
    run(&folder.path().join("first")).wait().unwrap();
    let life = u64::try_from(start.elapsed().as_micros()).unwrap();
    let mut in_time = 0;
    for round in 0..number_from_environment("RLEAKS_KILLS", 12) {
        let path = folder.path().join(round.to_string());
        let mut rleaks = run(&path);
        sleep(Duration::from_micros(jitter(round, life)));
        in_time += u32::from(rleaks.try_wait().unwrap().is_none());
        rleaks.kill().unwrap();
        rleaks.wait().unwrap();
        let ended = || fs::read_to_string(&path).is_ok_and(|text| text == "worked\nended");
        if path.exists() {
            wait_until(&format!("round {round}: it does not end"), ended);
        }
        // Nothing of it is left: no process is stuck at its end.
        let name = path.display().to_string();
        wait_until(&format!("round {round}: it is still there"), || {
            !is_running(&name)
        });
        // Where rleaks was killed before it had started the command, there is nothing.
        assert!(ended() || !path.exists(), "round {round}");
    }
    assert_ne!(in_time, 0, "rleaks always ended before it could be killed");
}

/// Says whether a process has `argument` as its last one.
fn is_running(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.strip_suffix(b"\0")
            .is_some_and(|line| line.ends_with(argument.as_bytes()))
    })
}

#[test]
fn command_goes_on_when_rleaks_is_killed() {
    goes_on_when_rleaks_is_killed(&[]);
}

#[test]
fn traced_command_goes_on_when_rleaks_is_killed() {
    goes_on_when_rleaks_is_killed(&["--on-signal"]);
}

#[test]
fn command_starts_with_the_signals_that_rleaks_was_started_with() {
    let grep = ["grep", "^Sig[BI]", "/proc/self/status"];
    let ignoring = "import signal, subprocess, sys\n\
        for name in sys.argv[1].split(): signal.signal(signal.Signals[name], signal.SIG_IGN)\n\
        sys.exit(subprocess.call(sys.argv[2:], restore_signals=False))";
    let under = |ignored: &str, words: &[&str]| {
        let rleaks = env!("CARGO_BIN_EXE_rleaks");
        let words = words
            .iter()
            .map(|word| if *word == "rleaks" { rleaks } else { word });
        let python = Command::new("/usr/bin/python3")
            .args(["-c", ignoring, ignored])
            .args(words)
            .output();
        text(&python.unwrap().stdout)
    };
    for ignored in ["", "SIGPIPE", "SIGCHLD", "SIGPIPE SIGCHLD SIGHUP SIGINT"] {
        let alone = under(ignored, &grep);
        for options in [
            &["record"][..],
            &["--at-exit"],
            &["--at-exit", "--on-signal"],
        ] {
            let json = ["--json=/dev/null"]
                .into_iter()
                .filter(|_| options[0] != "record");
            let words = ["rleaks"].into_iter().chain(options.iter().copied());
            let words: Vec<_> = words.chain(json).chain(["--"]).chain(grep).collect();
            assert_eq!(under(ignored, &words), alone, "{ignored} {options:?}");
        }
    }
}
