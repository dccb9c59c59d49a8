//! `rleaks record` and `rleaks preload-path`: the program is what it would be without rleaks, and has the
//! recorder in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Build, Fixture, Program, Shared, addresses, compile_as, functions, leaks, rleaks,
    rleaks_command, text, unprivileged,
};

/// rleaks with a temporary folder of its own, and without one of the session.
fn rleaks_in(folder: &Path) -> Command {
    let mut command = rleaks_command();
    command.env("TMPDIR", folder).env_remove("XDG_RUNTIME_DIR");
    command.env_remove("RLEAKS_PRELOAD");
    command
}

fn path_of(command: &mut Command) -> PathBuf {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    PathBuf::from(text(&output.stdout).trim_end())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn recorded_program_is_the_process_that_was_started_as_rleaks() {
    let script = "echo $$; read line; echo \"$line\"; kill -TERM $$";
    let mut command = rleaks_command();
    let mut program = Program::start(command.args(["record", "--", "bash", "-c", script]));
    assert_eq!(program.line(), program.pid());
    let maps = fs::read_to_string(format!("/proc/{}/maps", program.id())).unwrap();
    let library = text(&rleaks(&["preload-path"]).stdout);
    assert!(maps.contains(library.trim_end()), "{maps}");
    assert_eq!(program.ask("a line"), "a line");
    assert_eq!(program.wait().signal(), Some(15));
}

#[test]
fn scan_of_a_recorded_program_shows_who_allocated() {
    let program = Fixture::program("kind_root_leak.c");
    let fixture = Fixture::of(rleaks_command().args(["record", "--"]).arg(program));
    let report = leaks(&fixture.pid());
    assert!(addresses(&report["leaks"]).keys().eq(fixture.leaks.keys()));
    for leak in report["leaks"].as_array().unwrap() {
        let functions = functions(&report, leak);
        assert!(functions.iter().any(|name| name == "main"), "{functions:?}");
    }
}

#[test]
fn programs_that_recorded_ones_start_are_recorded() {
    let script = "cat /proc/self/maps; exec grep librleaks_preload /proc/self/maps";
    let folder = tempfile::tempdir().unwrap();
    let installed = path_of(
        rleaks_in(folder.path())
            .args(["preload-path", "--install"])
            .arg(folder.path()),
    );
    let output = rleaks_in(folder.path())
        .env("RLEAKS_PRELOAD", &installed)
        .args(["record", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(
        said.matches(installed.to_str().unwrap()).count() >= 4,
        "{said}"
    );
}

#[test]
fn options_and_environment_reach_the_recorder() {
    let settings = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = rleaks_command();
        let command = command.arg("record").args(arguments).args(["--", "env"]);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let all = text(&output.stdout);
        let mut settings: Vec<String> = all
            .lines()
            .filter(|line| line.starts_with("RLEAKS_") || line.starts_with("LD_PRELOAD"))
            .map(str::to_owned)
            .collect();
        settings.sort();
        settings
    };
    let library = text(&rleaks(&["preload-path"]).stdout);
    let library = library.trim_end();
    assert_eq!(settings(&[], &[]), [format!("LD_PRELOAD={library}")]);
    let options = [
        "--sample=524288",
        "--depth",
        "7",
        "--scribble",
        "--history=/tmp/%p.h",
    ];
    let depth = [("RLEAKS_STACK_LOG_DEPTH", "9")];
    assert_eq!(
        settings(&options, &depth)[1..],
        [
            "RLEAKS_STACK_LOG=full",
            "RLEAKS_STACK_LOG_DEPTH=7",
            "RLEAKS_STACK_LOG_HISTORY=/tmp/%p.h",
            "RLEAKS_STACK_LOG_SAMPLE=524288",
            "RLEAKS_STACK_LOG_SCRIBBLE=1",
        ]
    );
    assert_eq!(settings(&[], &depth)[1..], ["RLEAKS_STACK_LOG_DEPTH=9"]);
    let libc = "/usr/lib/x86_64-linux-gnu/libm.so.6";
    assert_eq!(
        settings(&[], &[("LD_PRELOAD", libc)]),
        [format!("LD_PRELOAD={library}:{libc}")]
    );
}

#[test]
fn history_without_a_file_is_in_this_directory() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let output = rleaks_command()
        .args(["record", "--history", "--", "sh", "-c", "cd /; env"])
        .current_dir(&folder)
        .output()
        .unwrap();
    let line = format!(
        "RLEAKS_STACK_LOG_HISTORY={}/rleaks-%p.history\n",
        folder.display()
    );
    assert!(text(&output.stdout).contains(&line), "{output:?}");
}

#[test]
fn what_cannot_be_recorded_runs_and_it_is_said() {
    for (build, reason) in [
        (Build::Static, "statically linked"),
        (Build::I386, "i386"),
        (Build::MuslStatic, "statically linked"),
    ] {
        let program = compile_as("echo.c", build);
        let without_input = |command: &mut Command| command.stdin(Stdio::null()).output().unwrap();
        let output = without_input(rleaks_command().args(["record", "--"]).arg(&program));
        let alone = without_input(&mut Command::new(&program));
        assert_eq!(output.status, alone.status);
        assert_eq!(text(&output.stdout), text(&alone.stdout));
        let said = text(&output.stderr);
        assert!(
            said.contains("is not recorded") && said.contains(reason),
            "{said}"
        );
    }
}

#[test]
fn library_is_written_once_where_only_the_user_can_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_of(rleaks_in(folder.path()).arg("preload-path"));
    assert!(path.starts_with(folder.path()), "{path:?}");
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let first = modified();
    assert_eq!(path_of(rleaks_in(folder.path()).arg("preload-path")), path);
    assert_eq!(modified(), first);
    fs::write(&path, "damaged").unwrap();
    path_of(rleaks_in(folder.path()).arg("preload-path"));
    assert!(fs::read(&path).unwrap().starts_with(b"\x7fELF"));

    let session = tempfile::tempdir().unwrap();
    let in_session = path_of(
        rleaks_in(folder.path())
            .env("XDG_RUNTIME_DIR", session.path())
            .arg("preload-path"),
    );
    assert_eq!(in_session.parent(), Some(&*session.path().join("rleaks")));
    assert_eq!(in_session.file_name(), path.file_name());
}

#[test]
fn folder_of_somebody_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = path_of(rleaks_in(folder.path()).arg("preload-path"));
    let own = own.parent().unwrap();
    fs::set_permissions(own, fs::Permissions::from_mode(0o777)).unwrap();
    for arguments in [
        &["preload-path"][..],
        &["record", "--", "true"],
        &["--at-exit", "--", "true"],
    ] {
        let output = rleaks_in(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains("only this user can write"), "{said}");
    }
}

#[test]
fn installed_library_can_be_loaded_by_other_users() {
    let shared = Shared::new();
    let folder = shared.path().join("lib").join("rleaks");
    let installed = path_of(
        rleaks_in(shared.path())
            .args(["preload-path", "--install"])
            .arg(&folder),
    );
    assert_eq!(installed.parent(), Some(&*folder));
    assert_eq!(mode(&installed), 0o755);
    assert_eq!(mode(&folder), 0o755);
    let output = unprivileged(Path::new("grep"))
        .args(["-c", installed.to_str().unwrap(), "/proc/self/maps"])
        .env("LD_PRELOAD", &installed)
        .output()
        .unwrap();
    assert_eq!(text(&output.stderr), "");
    assert!(text(&output.stdout).trim().parse::<u32>().unwrap() > 0);
}

#[test]
fn library_that_is_named_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let named = folder.path().join("named.so");
    let missing = rleaks_in(folder.path())
        .env("RLEAKS_PRELOAD", &named)
        .arg("preload-path")
        .output();
    let missing = missing.unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        text(&missing.stderr).contains("named.so, which is no file"),
        "{missing:?}"
    );
    fs::write(&named, "").unwrap();
    let mut command = rleaks_in(folder.path());
    assert_eq!(
        path_of(command.env("RLEAKS_PRELOAD", &named).arg("preload-path")),
        named
    );
}
