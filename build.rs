//! Compiles the recorder of the malloc stack log, which rleaks carries in itself.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/preload");
    println!("cargo::rerun-if-changed=src/stacklog/format.rs");
    println!("cargo::rustc-check-cfg=cfg(rleaks_recorder)");
    let out = PathBuf::from(variable("OUT_DIR")).join("librleaks.so");
    if has_recorder(&variable("TARGET")) {
        compile(&out);
    } else {
        // An empty file says that there is none.
        std::fs::write(&out, []).expect("the build folder can be written to");
    }
}

fn has_recorder(target: &str) -> bool {
    target.starts_with("x86_64-") && target.contains("-linux-")
}

/// Compiles it without Cargo: it is part of this package, and has no dependencies.
///
/// It names no library and no version of a symbol, so that it loads beside each C library, however
/// old. It is always optimized: the program that is recorded pays for it.
fn compile(out: &Path) {
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--edition=2024", "--crate-name=rleaks_recorder"])
        .args(["--crate-type=cdylib", "--cfg=rleaks_recorder"])
        .arg(format!("--target={}", variable("TARGET")))
        .args(["-Cpanic=abort", "-Copt-level=3", "-Ccodegen-units=1"])
        .args(["-Cstrip=symbols", "-Clink-arg=-nostdlib"])
        .args(["-Clink-arg=-nodefaultlibs", "-Clink-arg=-Wl,--build-id"])
        .arg("-Clink-arg=-Wl,-soname,librleaks.so")
        .args(["--cap-lints=warn", "-o"])
        .arg(out)
        .arg("src/preload/lib.rs");
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={}", linker.display()));
    }
    let status = rustc.status().expect("rustc can be started");
    assert!(status.success(), "the recorder cannot be compiled");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"))
}
