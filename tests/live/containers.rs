//! Targets in other pid, mount and user namespaces, seen from outside and from inside.
//!
//! They need root and unshare(1).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;

use crate::generator::{assert_blocks_are_exact, assert_leaks_are_exact};
use crate::support::{
    Container, Fixture, Root, Shared, WIDTHS, heap, heap_by, leaks, leaks_by, unprivileged,
};

const GENERATOR: &[&str] = &["11", "4", "2000"];

/// Leaks and blocks are exact, for rleaks outside and for rleaks inside, and each names the target
/// by the pid that it has there.
fn assert_both_views_are_exact(container: &Container) {
    let fixture = &container.fixture;
    let outside = leaks(&fixture.pid());
    assert_leaks_are_exact(fixture, &outside, "outside");
    assert_blocks_are_exact(fixture, &heap(&fixture.pid()), "outside");
    assert_eq!(outside["target"]["pid"].to_string(), fixture.pid());

    let inside = leaks_by(container.rleaks().arg("1"));
    assert_leaks_are_exact(fixture, &inside, "inside");
    assert_blocks_are_exact(fixture, &heap_by(&mut container.rleaks(), "1"), "inside");
    assert_eq!(inside["target"]["pid"], 1);
    assert_eq!(inside["target"]["executable"], "/fixture");
}

#[test]
fn generator_is_exact_in_a_user_namespace() {
    let container = Container::start(Root::Tmpfs, "generator.c", GENERATOR);
    assert_both_views_are_exact(&container);
}

#[test]
fn generator_is_exact_on_an_overlay() {
    let container = Container::start_as_root(Root::Overlay, "generator.c", GENERATOR);
    assert_both_views_are_exact(&container);
}

#[test]
fn generator_is_exact_in_a_container_whatever_its_width() {
    for build in WIDTHS {
        let container = Container::start_built(Root::Tmpfs, "generator.c", build, GENERATOR);
        assert_both_views_are_exact(&container);
    }
}

#[test]
fn generator_is_exact_in_a_chroot() {
    let container = Container::start(Root::Chroot, "generator.c", GENERATOR);
    assert_both_views_are_exact(&container);
}

/// The types that are named in a report.
fn types(report: &Value) -> BTreeSet<String> {
    let leaks = report["leaks"].as_array().unwrap();
    let types = leaks.iter().filter_map(|leak| leak["type"].as_str());
    types.map(str::to_owned).collect()
}

fn true_types(fixture: &Fixture) -> BTreeSet<String> {
    let types = fixture
        .leaks
        .values()
        .filter_map(|leak| leak.type_name.clone());
    types.collect()
}

#[test]
fn symbols_are_those_of_the_containers_files() {
    for root in [Root::Tmpfs, Root::Overlay, Root::Chroot] {
        let container = Container::start(root, "cpp_types.cpp", &[]);
        let fixture = &container.fixture;
        assert_eq!(
            types(&leaks(&fixture.pid())),
            true_types(fixture),
            "{root:?}"
        );
        let inside = leaks_by(container.rleaks().arg("1"));
        assert_eq!(types(&inside), true_types(fixture), "{root:?}");
    }
}

#[test]
fn symbols_in_a_chroot_need_no_privilege() {
    let container = Container::start_as_root(Root::Chroot, "cpp_types.cpp", &[]);
    let mut without_map_files = Command::new("setpriv");
    without_map_files.args([
        "--inh-caps=-all",
        "--bounding-set=-sys_admin,-checkpoint_restore",
        env!("CARGO_BIN_EXE_rleaks"),
        &container.fixture.pid(),
    ]);
    let report = leaks_by(&mut without_map_files);
    assert_eq!(types(&report), true_types(&container.fixture));
}

/// Runs a program to its end, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn debug_files_are_those_of_the_container() {
    let container = Container::start_as_root(Root::Tmpfs, "cpp_types.cpp", &[]);
    let fixture = &container.fixture;
    let program = container.file("fixture");
    let [path, stripped] = [program.clone(), container.file("stripped")];
    let [path, stripped] = [&path, &stripped].map(|path| path.to_str().unwrap());
    let notes = run("readelf", &["--notes", path]);
    let id = notes.split("Build ID: ").nth(1).unwrap().trim();
    let id = id.split_whitespace().next().unwrap();

    // The same build, without its symbols: it takes the place of the one that is mapped.
    run("objcopy", &["--strip-all", path, stripped]);
    let debug = container.file(&format!("usr/lib/debug/.build-id/{}", &id[..2]));
    fs::create_dir_all(&debug).unwrap();
    let debug = debug.join(format!("{}.debug", &id[2..]));
    run(
        "objcopy",
        &["--only-keep-debug", path, debug.to_str().unwrap()],
    );
    fs::rename(stripped, &program).unwrap();
    assert_eq!(types(&leaks(&fixture.pid())), true_types(fixture));

    fs::remove_file(debug).unwrap();
    let without = types(&leaks(&fixture.pid()));
    assert!(without.len() < true_types(fixture).len(), "{without:?}");
}

/// What a hostile container may put in the place of a file while rleaks looks: the leaks are the
/// same, and nothing hangs.
#[test]
fn hostile_files_in_a_container_are_not_opened() {
    type Replace = fn(&std::path::Path);
    let replacements: [Replace; 6] = [
        |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(5, 0)).unwrap(),
        |path| symlink("/etc/passwd", path).unwrap(),
        |path| symlink("/fixture", path).unwrap(),
        |path| symlink("/proc/self/fd/0", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
    ];
    for replace in replacements {
        let container = Container::start_as_root(Root::Tmpfs, "cpp_types.cpp", &[]);
        let path = container.file("fixture");
        fs::remove_file(&path).unwrap();
        replace(&path);
        let fixture = &container.fixture;
        // It is still mapped.
        assert_eq!(types(&leaks(&fixture.pid())), true_types(fixture));
        let inside = leaks_by(container.rleaks().arg("1"));
        assert_eq!(types(&inside), true_types(fixture));
    }
}

/// A fixture of an unprivileged user, and rleaks of the same user: what is deleted is out of reach.
fn unprivileged_types(change: impl Fn(&Shared)) -> (BTreeSet<String>, BTreeSet<String>) {
    let (shared, rleaks) = Shared::with_rleaks();
    let program = shared.add(&Fixture::program("cpp_types.cpp"), "fixture");
    let fixture = Fixture::start_by(&mut unprivileged(&program));
    change(&shared);
    let report = leaks_by(unprivileged(&rleaks).arg(fixture.pid()));
    assert_eq!(
        report["leaks"].as_array().unwrap().len(),
        fixture.leaks.len()
    );
    (types(&report), true_types(&fixture))
}

#[test]
fn deleted_and_replaced_files_name_nothing_wrongly() {
    let (found, truth) = unprivileged_types(|_| {});
    assert_eq!(found, truth);
    let (found, truth) = unprivileged_types(|shared| {
        fs::remove_file(shared.path().join("fixture")).unwrap();
    });
    assert!(found.is_subset(&truth), "{found:?}");
    let (found, truth) = unprivileged_types(|shared| {
        fs::remove_file(shared.path().join("fixture")).unwrap();
        shared.add(&Fixture::program("busy.c"), "fixture");
    });
    assert!(found.is_subset(&truth), "{found:?}");
}

#[test]
fn deleted_and_replaced_files_are_read_where_they_are_mapped() {
    let shared = Shared::new();
    let program = shared.add(&Fixture::program("cpp_types.cpp"), "fixture");
    let fixture = Fixture::start_by(&mut Command::new(&program));
    fs::remove_file(&program).unwrap();
    assert_eq!(types(&leaks(&fixture.pid())), true_types(&fixture));
    shared.add(&Fixture::program("busy.c"), "fixture");
    assert_eq!(types(&leaks(&fixture.pid())), true_types(&fixture));
}
