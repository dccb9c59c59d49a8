//! A snapshot that was saved gives the answer that the process gave.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harm::{assert_ends_well, assert_goes_on};
use crate::support::{
    Build, Fixture, Program, SavedFile, WIDTHS, addresses, assert_refused, compile, lasting, leaks,
    leaks_in, leaks_with, recorded, rleaks, rleaks_command, text,
};

/// The ways to save a snapshot.
const WAYS: [&[&str]; 6] = [
    &[],
    &["--compress"],
    &["--no-content"],
    &["--no-content", "--compress"],
    &["--readonly-content"],
    &["--snapshot=stream"],
];

/// Those that have least in common.
const OPPOSITES: [&[&str]; 2] = [&[], &["--no-content", "--compress"]];

/// However process `pid` is saved, the file gives the report that the process gives.
fn assert_same_answer(pid: &str, name: &str) {
    assert_same_answer_by(&WAYS, pid, name);
}

/// The same, for some of the ways to save it.
fn assert_same_answer_by(ways: &[&[&str]], pid: &str, name: &str) {
    let live = lasting(leaks_with(pid, &["--no-content"]));
    for way in ways {
        let saved = SavedFile::new(pid, way);
        let report = saved.leaks(&["--no-content"]);
        assert_eq!(report["target"]["kind"], "snapshot");
        assert_eq!(lasting(report), live, "{name} {way:?}");
    }
}

#[test]
fn every_kind_of_leak_and_of_root_is_saved() {
    let library = compile("tls_library.c");
    let library: &[&str] = &[library.to_str().unwrap()];
    for (file, arguments) in [
        ("kind_root_leak.c", &[][..]),
        ("kind_cycle.c", &[]),
        ("kind_indirect.c", &[]),
        ("cpp_types.cpp", &[]),
        ("root_globals.c", &[]),
        ("root_stack.c", &[]),
        ("root_redzone.c", &[]),
        ("root_registers.c", &[]),
        ("root_tls.c", library),
        ("root_other.c", &[]),
        ("root_kernel.c", &[]),
        ("root_io_uring.c", &[]),
        ("root_shared.c", &[]),
        ("root_shared.c", &["disk"]),
        ("coroutine.c", &[]),
        ("dead_stack.c", &[]),
        ("exited_thread.c", &[]),
        ("free_chunk.c", &[]),
        ("main_exited.c", &[]),
        ("many_threads.c", &["100", "sleep"]),
        ("stale_call.c", &["locked"]),
    ] {
        let fixture = Fixture::start_with(file, arguments);
        assert_same_answer_by(&OPPOSITES, &fixture.pid(), file);
    }
}

#[test]
fn random_heaps_of_all_widths_are_saved() {
    for build in [Build::Usual].into_iter().chain(WIDTHS) {
        for arguments in [&["3", "4", "1500"][..], &["12", "4", "1500", "fork"]] {
            let fixture = Fixture::start_built("generator.c", build, arguments);
            let name = format!("{build:?} {arguments:?}");
            assert_same_answer_by(&OPPOSITES, &fixture.pid(), &name);
        }
    }
}

#[test]
fn heaps_in_unusual_states_are_saved() {
    for (modes, tunables) in [
        ("plain", ""),
        ("exited+trim", ""),
        ("imitations", ""),
        ("plain", "glibc.malloc.tcache_count=0"),
        ("plain", "glibc.malloc.mmap_threshold=4096"),
        ("plain", "glibc.malloc.mmap_max=0"),
    ] {
        let environment = [("GLIBC_TUNABLES", tunables)];
        let arguments = [modes, "1", "3", "3000"];
        let fixture = Fixture::start_in("heap_modes.c", &arguments, &environment);
        assert_same_answer_by(&OPPOSITES, &fixture.pid(), &format!("{modes} {tunables}"));
    }
}

#[test]
fn call_stacks_are_saved() {
    let fixture = Fixture::of(&mut recorded(compile("load_aot.c")));
    let report = leaks(&fixture.pid());
    assert_ne!(report["stacks"], Value::Array(Vec::new()), "{report}");
    assert_same_answer(&fixture.pid(), "load_aot.c");
}

#[test]
fn programs_of_others_are_saved() {
    let script = "import sys, threading, json\n\
        held = [json.dumps({'n': i, 'list': list(range(i % 40))}) for i in range(20000)]\n\
        threads = [threading.Thread(target=sys.stdin.readline, daemon=True) for _ in range(2)]\n\
        for thread in threads: thread.start()\n\
        print('ready', flush=True)\n\
        threads[0].join()";
    let bash = "for i in {1..3000}; do words+=(\"word$i\"); done; echo ready; read line";
    for mut command in [program("/usr/bin/python3", script), program("bash", bash)] {
        let mut program = Program::start(&mut command);
        assert_eq!(program.line(), "ready");
        assert_same_answer(&program.pid(), &format!("{command:?}"));
    }
    let mut sqlite = Program::start(Command::new("sqlite3").args(["-batch", ":memory:"]));
    let statements = "create table t (a, b); insert into t with recursive n(x) as (select 1 union \
        all select x + 1 from n where x < 3000) select x, hex(x) from n; select 'ready';";
    assert_eq!(sqlite.ask(statements), "ready");
    assert_same_answer(&sqlite.pid(), "sqlite3");
}

fn program(name: &str, script: &str) -> Command {
    let mut command = Command::new(name);
    command.args(["-c", script]);
    command
}

#[test]
fn what_blocks_contain_is_saved() {
    let fixture = Fixture::start("cpp_types.cpp");
    let live = lasting(leaks(&fixture.pid()));
    for way in [&[][..], &["--compress"]] {
        let saved = SavedFile::new(&fixture.pid(), way);
        assert_eq!(lasting(saved.leaks(&[])), live, "{way:?}");
    }
}

#[test]
fn later_options_work_on_a_saved_snapshot() {
    let fixture = Fixture::start("root_globals.c");
    for way in [&[][..], &["--no-content"]] {
        let saved = SavedFile::new(&fixture.pid(), way);
        let found = saved.leaks(&["--no-roots=globals"]);
        let found = addresses(&found["leaks"]);
        assert!(
            fixture.live.keys().all(|at| found.contains_key(at)),
            "{way:?}"
        );
    }
    let saved = SavedFile::new(&fixture.pid(), &[]);
    let path = saved.path();
    let path = path.to_str().unwrap();
    let live = leaks_with(&fixture.pid(), &["--unaligned"]);
    assert_eq!(lasting(saved.leaks(&["--unaligned"])), lasting(live));
    let list = |target: &str| text(&rleaks(&[target, "--list", "-q"]).stdout);
    assert_eq!(list(path), list(&fixture.pid()));
}

#[test]
fn a_snapshot_says_how_much_content_it_has() {
    let fixture = Fixture::start("kind_root_leak.c");
    for (way, level) in [
        (&[][..], "full"),
        (&["--full-content"], "full"),
        (&["--readonly-content"], "readonly"),
        (&["--no-content"], "none"),
    ] {
        let saved = SavedFile::new(&fixture.pid(), way);
        let report = saved.leaks(&[]);
        assert_eq!(report["capture"]["content"], level);
        let warnings = report["warnings"].as_array().unwrap();
        let is_warned = warnings
            .iter()
            .any(|warning| warning["code"] == "no_content");
        assert_eq!(is_warned, level != "full", "{warnings:?}");
        let path = saved.path();
        if level != "full" {
            assert_refused(
                &[path.to_str().unwrap(), "--unaligned"],
                "--unaligned needs",
            );
        }
    }
}

/// Heap, free chunks, stacks, globals, environment, arguments, registers: each holds a word that
/// must not get into the file.
#[test]
fn without_content_no_secret_is_saved() {
    const SCRIPT: &str = r#"
import ctypes, sys, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
texts = ["heaps3cret-%06d-lima" % i for i in range(2000)]
held = {text: (text + "-mike").encode() for text in texts}
blocks = []
for size in (24, 40, 100, 300, 1000, 5000, 300000):
    for i in range(30):
        secret = b"frees3cret-%04d-november " % i
        block = libc.malloc(size)
        ctypes.memmove(block, secret * (size // len(secret) + 1), size)
        blocks.append(block)
for block in blocks[::2]: libc.free(block)
del texts[::3]
number = int.from_bytes(b"numbers3cret-oscar", "little")
array = (ctypes.c_char * 64)(*[bytes([c]) for c in b"arrays3cret-papa"])
def work():
    local = b"stacks3cret-quebec" * 20
    print("ready", flush=True)
    sys.stdin.readline()
threading.Thread(target=work).start()
"#;
    let mut command = program("/usr/bin/python3", SCRIPT);
    command
        .arg("arguments3cret-romeo")
        .env("SECRET", "environments3cret-sierra");
    let mut python = Program::start(&mut command);
    assert_eq!(python.line(), "ready");
    let words = [
        "s3cret", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra",
    ];
    let count = |options: &[&str]| {
        let saved = SavedFile::new(&python.pid(), options);
        let bytes = fs::read(saved.path()).unwrap();
        words.map(|word| memchr::memmem::find_iter(&bytes, word).count())
    };
    assert!(count(&[]).iter().all(|count| *count > 0));
    assert_eq!(count(&["--no-content"]), [0; 9]);
    assert_eq!(count(&["--readonly-content"]), [0; 9]);
    python.tell("");
}

#[test]
fn gdb_opens_a_snapshot() {
    let fixture = Fixture::start_with("many_threads.c", &["5", "sleep"]);
    let leaking = Fixture::start("kind_root_leak.c");
    let gdb = |program: &str, pid: &str, commands: &[&str]| {
        let saved = SavedFile::new(pid, &[]);
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch"]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let output = gdb
            .arg(Fixture::program(program))
            .arg(saved.path())
            .output()
            .unwrap();
        text(&output.stdout)
    };
    let said = gdb("many_threads.c", &fixture.pid(), &["info threads", "bt"]);
    assert_eq!(said.matches("(LWP ").count(), 6 + 1, "{said}");
    assert!(said.contains(" main ("), "{said}");
    let (at, leak) = leaking.leaks.first_key_value().unwrap();
    let said = gdb(
        "kind_root_leak.c",
        &leaking.pid(),
        &["info proc mappings", &format!("x/1gx {:#x}", at - 8)],
    );
    assert!(said.contains("/libc.so.6"), "{said}");
    let header = format!("{:#x}:\t{:#018x}", at - 8, (leak.size + 8) | 1);
    assert!(said.contains(&header), "{header} is not in {said}");
}

#[test]
fn a_compressed_snapshot_is_a_plain_one_for_zstd() {
    let fixture = Fixture::start("kind_cycle.c");
    let saved = SavedFile::new(&fixture.pid(), &["--compress"]);
    let plain = saved.path().with_extension("plain");
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-d", "-o"]).arg(&plain).arg(saved.path());
    assert!(zstd.status().unwrap().success());
    assert_eq!(leaks_in(&plain, &[])["leaks"], saved.leaks(&[])["leaks"]);
}

#[test]
fn reserved_memory_makes_no_large_file() {
    let script = "import mmap, sys\n\
        big = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n\
        big[1 << 30] = big[1 << 39] = 1\n\
        print('ready', flush=True)\n\
        sys.stdin.readline()";
    let mut python = Program::start(&mut program("/usr/bin/python3", script));
    assert_eq!(python.line(), "ready");
    let saved = SavedFile::new(&python.pid(), &[]);
    let size = fs::metadata(saved.path()).unwrap().len();
    assert!(size < 100 << 20, "{size}");
    assert_same_answer(&python.pid(), "a reservation");
}

#[test]
fn a_snapshot_is_its_owners_and_a_directory_gets_a_name() {
    let fixture = Fixture::start("kind_cycle.c");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = rleaks(&[&fixture.pid(), "--output-graph", path, "--compress"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let files: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|file| file.unwrap())
        .collect();
    let [file] = files.as_slice() else {
        panic!("{files:?}")
    };
    let name = file.file_name().into_string().unwrap();
    assert!(name.starts_with("rleaks-kind_cycle"), "{name}");
    assert!(name.ends_with("Z.core.zst"), "{name}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        !leaks_in(&file.path(), &[])["leaks"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_is_no_regular_file_is_not_replaced() {
    let fixture = Fixture::start("kind_cycle.c");
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    for path in [
        "/dev/null",
        link.to_str().unwrap(),
        "-",
        "/no/such/folder/x",
    ] {
        let output = rleaks(&[&fixture.pid(), "--output-graph", path]);
        assert_eq!(output.status.code(), Some(2), "{path}");
        assert_ne!(text(&output.stderr), "");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The file has its name when it is whole, or never; what was begun can be told from it.
#[test]
fn a_killed_rleaks_leaves_no_file_of_that_name_and_the_target_goes_on() {
    let mut busy = Fixture::start("busy.c");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.core");
    let pid = busy.pid();
    let start = Instant::now();
    let save = || {
        let mut command = rleaks_command();
        command.args([&pid, "--output-graph"]).arg(&path);
        command.stderr(Stdio::null());
        // rleaks has a child that does the work.
        command.process_group(0);
        command
    };
    assert!(save().status().unwrap().success());
    let whole = start.elapsed();
    for part in 0..10 {
        fs::remove_file(&path).unwrap_or_default();
        let mut rleaks = save().spawn().unwrap();
        std::thread::sleep(whole * part / 10);
        let group = nix::unistd::Pid::from_raw(i32::try_from(rleaks.id()).unwrap());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap_or_default();
        let status = rleaks.wait().unwrap();
        if path.exists() {
            let report = leaks_in(&path, &[]);
            assert!(report["heap"]["blocks"].as_u64() > Some(0), "{report}");
        } else {
            assert_eq!(status.signal(), Some(9), "{status}");
        }
        assert_goes_on(&mut busy);
    }
    assert_ends_well(busy);
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    let fixture = Fixture::start_with("generator.c", &["3", "4", "20000"]);
    let disk = SmallDisk::new();
    let path = disk.path().join("app.core");
    let output = rleaks(&[&fixture.pid(), "--output-graph", path.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("make room there"), "{said}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    assert!(
        !leaks(&fixture.pid())["leaks"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

/// A disk with room for a few pages. Dropping it takes it away.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=256k", "small"])
            .arg(folder.path());
        assert!(
            mount.status().unwrap().success(),
            "this test mounts a file system: run it as root"
        );
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn damaged_snapshots_are_refused() {
    let fixture = Fixture::start("kind_cycle.c");
    for options in [&[][..], &["--compress"]] {
        let saved = SavedFile::new(&fixture.pid(), options);
        let mut bytes = Vec::new();
        fs::File::open(saved.path())
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        let damaged = saved.path().with_extension("damaged");
        for size in [0, 3, 60, 4000, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&damaged, &bytes[..size]).unwrap();
            let output = rleaks(&[damaged.to_str().unwrap()]);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{options:?} {size}: {said}");
        }
    }
    // A frame that is not what it was.
    let saved = SavedFile::new(&fixture.pid(), &["--compress"]);
    let mut bytes = fs::read(saved.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(saved.path(), &bytes).unwrap();
    assert_refused(
        &[saved.path().to_str().unwrap()],
        "the compressed frame at offset",
    );
}

/// The pause is that of a scan: the file is written when the target runs again.
#[test]
fn the_pause_of_saving_is_that_of_a_scan_and_is_kept() {
    let fixture = Fixture::start("kind_cycle.c");
    let saved = SavedFile::new(&fixture.pid(), &[]);
    let capture = saved.leaks(&[])["capture"].clone();
    let pause = capture["pause_seconds"].as_f64().unwrap();
    assert!(
        pause > 0.0 && capture["stops"].as_u64() >= Some(1),
        "{capture}"
    );
    let age = fs::metadata(saved.path()).unwrap().ctime_nsec();
    assert!(age >= 0 && Duration::from_secs_f64(pause) < Duration::from_secs(10));
    assert_eq!(capture["method"], "copy");
    let streamed = SavedFile::new(&fixture.pid(), &["--snapshot=stream"]);
    let capture = streamed.leaks(&[])["capture"].clone();
    assert_eq!(capture["method"], "stream");
    assert!(capture["pause_seconds"].as_f64() > Some(0.0), "{capture}");
}
