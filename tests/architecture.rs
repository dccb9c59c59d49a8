//! Holds what ARCHITECTURE.md promises about the layout of the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate. Each may import only from earlier ones.
const ORDER: [&str; 14] = [
    "addr",
    "memory",
    "warning",
    "fuzzing",
    "snapshot",
    "platform",
    "stacklog",
    "preload",
    "heap",
    "scan",
    "content",
    "symbolize",
    "report",
    "cli",
];

/// Where `unsafe` and `cfg(target_os)` may be.
const SYSTEM: [&str; 3] = ["platform/", "preload/", "scan/filter.rs"];

/// The most lines of a file, before its tests.
const MOST_LINES: usize = 600;

struct Source {
    /// The path below `src/`.
    path: String,
    text: String,
}

impl Source {
    /// The module of the crate that the file belongs to: `scan` for `scan/mark.rs`.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or(&self.path);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The numbered lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().zip(1..);
        lines.map(|(line, number)| (number, line.split("//").next().unwrap_or(line)))
    }

    fn is_system(&self) -> bool {
        SYSTEM.iter().any(|allowed| self.path.starts_with(allowed))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut paths = Vec::new();
    collect(&src, &mut paths);
    paths.sort();
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a source file"),
        path: path
            .strip_prefix(&src)
            .expect("below src")
            .display()
            .to_string(),
    };
    paths.into_iter().map(source).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// The modules that `code` names after `crate::`, alone or as the heads of a `{…}` list.
fn imported(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => modules.push(head(rest)),
            Some(list) => modules.extend(heads(list)),
        }
    }
    modules
}

fn head(path: &str) -> String {
    let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
    path.trim_start().chars().take_while(is_name).collect()
}

/// The first name of each element of a list, up to the brace that closes it.
fn heads(list: &str) -> Vec<String> {
    let mut found = vec![head(list)];
    let mut depth = 0;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(head(&list[at + 1..])),
            _ => {}
        }
    }
    found
}

#[test]
fn imports_of_all_shapes_are_seen() {
    let code = "use crate::addr::{Addr, AddrRange};\n\
                use crate::{\n    heap::{Block, Heap},\n    scan,\n};\n\
                fn f() -> crate::report::Report { crate::cli::main() }";
    assert_eq!(
        imported(code),
        ["addr", "heap", "scan", "", "report", "cli"]
    );
}

#[test]
fn modules_import_only_from_earlier_ones() {
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    for source in sources() {
        if matches!(source.path.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let own = place(source.module());
        assert!(
            own.is_some(),
            "src/{} has no place in the order of modules",
            source.path
        );
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for module in imported(&code.join("\n")) {
            let other = place(&module);
            assert!(
                other.is_none() || other <= own,
                "src/{} imports from {module}, which comes later",
                source.path
            );
        }
    }
}

#[test]
fn only_the_platform_speaks_to_the_operating_system() {
    let is_word = |line: &str, word: &str| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|found| found == word)
    };
    for source in sources().iter().filter(|source| !source.is_system()) {
        for (number, line) in source.code() {
            let place = format!("src/{}:{number}: {line}", source.path);
            assert!(
                !is_word(line, "unsafe"),
                "unsafe outside platform/: {place}"
            );
            let asks = line.contains("cfg") && is_word(line, "target_os");
            assert!(!asks, "target_os outside platform/: {place}");
        }
    }
}

#[test]
fn no_file_is_too_long() {
    for source in sources() {
        if source.path.ends_with("tests.rs") {
            continue;
        }
        let before_tests = source.text.split("#[cfg(test)]\nmod tests").next();
        let lines = before_tests.unwrap_or_default().lines().count();
        assert!(lines <= MOST_LINES, "src/{} has {lines} lines", source.path);
    }
}

#[test]
fn the_architecture_document_names_every_folder_and_file_of_the_first_level() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for entry in fs::read_dir(root().join("src")).expect("src") {
        let entry = entry.expect("an entry");
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            name.push('/');
        }
        assert!(
            document.contains(&name),
            "ARCHITECTURE.md does not name src/{name}"
        );
    }
}
