//! The house rules that a machine can check. Each test first meets a small example that breaks its
//! rule, so that it is known to be able to fail, and then the repository. A fault names its file
//! and line.

use std::collections::{BTreeMap, BTreeSet};

use source::{File, declared, file, line_of, listed, paths, repository};

#[path = "tidy/source.rs"]
mod source;

const LONGEST: usize = 400;
/// What a file that calls itself pure in its opening cannot need: waiting, clocks, the world
/// outside.
const IMPURE: [&str; 10] = [
    ".await",
    "async ",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::net",
    "std::env",
    "reqwest::",
    "getrandom",
];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 11] = [
    "util",
    "common",
    "helpers",
    "misc",
    "types",
    "manager",
    "handler",
    "processor",
    "service",
    "data",
    "core",
];

#[test]
fn a_module_uses_only_what_is_declared_before_it() {
    let lib = file("src/lib.rs", "pub mod key;\nmod turn;\n");
    let wrong = [
        lib,
        file("src/key/place.rs", "//! x\nuse crate::{key, turn::Turn};"),
        file("src/stray.rs", ""),
    ];
    assert_eq!(
        out_of_order(&wrong),
        [
            "src/key/place.rs:2: uses `turn`, which src/lib.rs declares after `key`",
            "src/stray.rs:1: not declared in src/lib.rs"
        ]
    );
    assert_none(out_of_order(&repository()));
}

#[test]
fn submodules_do_not_use_each_other_in_a_circle() {
    let wrong = [
        file("src/key/a.rs", "\nuse super::b::B;"),
        file("src/key/b.rs", "fn f() { crate::key::c::g() }"),
        file(
            "src/key/c.rs",
            "use super::{Key, a::A};\n#[cfg(test)]\nmod tests { use super::super::d::D; }",
        ),
        file("src/key/d.rs", "// use super::a is only a comment\nuse super::c;"),
    ];
    assert_eq!(
        circles(&wrong),
        [
            "src/key/a.rs:2: `key::a` uses `key::b`, which leads back to it",
            "src/key/b.rs:1: `key::b` uses `key::c`, which leads back to it",
            "src/key/c.rs:1: `key::c` uses `key::a`, which leads back to it",
        ]
    );
    assert_none(circles(&repository()));
}

#[test]
fn no_source_file_is_longer_than_it_can_be_read() {
    assert_eq!(
        too_long(&[file("tests/it/long.rs", &"\n".repeat(401))]),
        ["tests/it/long.rs:401: 401 lines, at most 400: it is two"]
    );
    assert_none(too_long(&repository()));
}

#[test]
fn a_file_opens_with_what_it_decides() {
    let wrong = [
        file("src/a.rs", "use std::fs;"),
        file("src/b.rs", "//! The bindings"),
        file("src/c.rs", "//! It is a sentence of\n//! its own."),
    ];
    let fault = "opens without a `//!` sentence that says what it decides";
    assert_eq!(unopened(&wrong), [format!("src/a.rs:1: {fault}"), format!("src/b.rs:1: {fault}")]);
    assert_none(unopened(&repository()));
}

#[test]
fn a_pure_file_waits_for_nothing_and_asks_no_clock() {
    let body = "fn f() { // .await\n    let now = Instant::now();\n}\n#[cfg(test)]\nmod tests { use std::fs; }";
    let wrong = [
        file("src/a.rs", &format!("//! Decides much. Pure.\n{body}")),
        file("src/b.rs", &format!("//! Does much.\n{body}")),
    ];
    assert_eq!(impure(&wrong), ["src/a.rs:3: `Instant::now` in a file that says it is pure"]);
    assert_none(impure(&repository()));
}

#[test]
fn every_metric_is_registered_in_one_place() {
    let wrong = [
        file("src/metrics.rs", "use prometheus_client::x;"),
        file("src/metrics/family.rs", "registry.register(name)"),
        file("src/metrics/turns.rs", "\nregistry.register_with_unit(name)"),
        file("src/turn.rs", "\nuse prometheus_client::y;"),
    ];
    assert_eq!(
        metrics_elsewhere(&wrong),
        [
            "src/metrics/turns.rs:2: only `families!` of src/metrics/family.rs registers a family",
            "src/turn.rs:2: metrics are made below src/metrics",
        ]
    );
    assert_none(metrics_elsewhere(&repository()));
}

#[test]
fn names_say_what_is_inside() {
    let wrong = [
        file("src/key/util.rs", ""),
        file("tests/it/common/mod.rs", ""),
        file("src/a.rs", "\npub mod helpers {}"),
    ];
    assert_eq!(
        empty_names(&wrong),
        [
            "src/key/util.rs:1: `util` says nothing",
            "tests/it/common/mod.rs:1: `common` says nothing",
            "src/a.rs:2: `helpers` says nothing"
        ]
    );
    assert_none(empty_names(&repository()));
}

#[test]
fn an_exception_to_a_lint_carries_its_reason() {
    let wrong = [file(
        "src/a.rs",
        "#![allow(dead_code)]\n#[expect(unused)]\n#[expect(\n    unused,\n    reason = \"later\"\n)]\nfn f() {}",
    )];
    assert_eq!(
        silenced(&wrong),
        [
            "src/a.rs:1: `allow`: write #[expect(.., reason = \"..\")]",
            "src/a.rs:2: `expect` without a reason"
        ]
    );
    assert_none(silenced(&repository()));
}

#[test]
fn the_readme_opens_with_its_two_commands() {
    let wrong = "# Title\n```sh\n# first\nmake demo   # a minute\ncargo run\nmake test\n```\n";
    assert_eq!(
        commands(&[file("README.md", wrong)]),
        ["README.md:5: the first two commands are `make demo`, `make test`; found `cargo run`"]
    );
    assert_eq!(
        commands(&[file("README.md", "# Title\n")]),
        ["README.md:1: the first two commands are `make demo`, `make test`; found `nothing`"]
    );
    assert_none(commands(&repository()));
}

#[test]
fn no_secret_and_no_machine_is_committed() {
    let key = format!("let key = \"s{}-{}\";", 'k', "a1".repeat(12));
    let home = format!("see {}somebody/notes", concat!("/ho", "me/"));
    let fine = "an invented sk-key-a1, a task-aaaaaaaaaaaaaaaaaaaaaaaaaaaa and $HOME/x";
    let wrong = [file("a.md", &format!("{fine}\n{key}\n{home}"))];
    assert_eq!(
        leaks(&wrong),
        ["a.md:2: looks like a secret key", "a.md:3: names a folder of one machine"]
    );
    assert_none(leaks(&repository()));
}

#[test]
fn the_lock_file_is_committed() {
    let locked = |paths: &[String]| paths.iter().any(|path| path == "Cargo.lock");
    assert!(!locked(&["Cargo.toml".into()]));
    assert!(
        locked(&listed(&["--cached"])),
        "Cargo.lock:1: not committed: every build uses --locked"
    );
}

#[track_caller]
fn assert_none(faults: Vec<String>) {
    assert!(
        faults.is_empty(),
        "a house rule is broken ({}):\n  {}",
        faults.len(),
        faults.join("\n  ")
    );
}

fn out_of_order(files: &[File]) -> Vec<String> {
    let lib =
        files.iter().find(|file| file.path == "src/lib.rs").expect("src/lib.rs tells the order");
    let order: Vec<&str> = lib.code.lines().filter_map(declared).collect();
    let place = |name: &str| order.iter().position(|declared| *declared == name);
    let mut faults = Vec::new();
    for file in files {
        let Some(&here) = file.module().as_ref().and_then(|module| module.first()) else {
            continue;
        };
        let Some(position) = place(here) else {
            faults.push(format!("{}:1: not declared in src/lib.rs", file.path));
            continue;
        };
        for (line, path) in paths(file) {
            if let Some(there) =
                path.first().filter(|name| place(name).is_some_and(|there| there > position))
            {
                faults.push(format!(
                    "{}:{line}: uses `{there}`, which src/lib.rs declares after `{here}`",
                    file.path
                ));
            }
        }
    }
    faults
}

fn circles(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<_> = files.iter().filter_map(File::module).collect();
    let mut uses = Vec::new();
    for file in files {
        let Some(module) = file.module() else { continue };
        for (line, path) in paths(file) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let shared = module.iter().zip(&path).take_while(|(a, b)| a == b).count();
            // The order of the top level is out_of_order's business; a parent and its child are one
            // noun.
            if shared > 0
                && shared < module.len()
                && shared < path.len()
                && modules.contains(&path[..=shared])
            {
                uses.push((
                    module[..=shared].join("::"),
                    path[..=shared].join("::"),
                    format!("{}:{line}", file.path),
                ));
            }
        }
    }
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to, _) in &uses {
        next.entry(from).or_default().insert(to);
    }
    let leads_back = |from: &str, to: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![to]);
        while let Some(module) = open.pop() {
            if seen.insert(module) {
                open.extend(next.get(module).into_iter().flatten());
            }
        }
        seen.contains(from)
    };
    let circular = uses.iter().filter(|(from, to, _)| leads_back(from, to));
    circular
        .map(|(from, to, place)| format!("{place}: `{from}` uses `{to}`, which leads back to it"))
        .collect()
}

fn too_long(files: &[File]) -> Vec<String> {
    let sources = files
        .iter()
        .filter(|file| file.path.starts_with("src/") || file.path.starts_with("tests/"));
    let counted = sources.filter(|file| {
        [".rs", ".py", ".sh", ".lua", ".toml"].iter().any(|end| file.path.ends_with(end))
    });
    counted
        .map(|file| (&file.path, file.text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(path, lines)| {
            format!("{path}:{}: {lines} lines, at most {LONGEST}: it is two", LONGEST + 1)
        })
        .collect()
}

fn unopened(files: &[File]) -> Vec<String> {
    let is_opened = |text: &str| {
        let opening: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
        let opening = opening.join("\n");
        let first = opening.split("\n\n").next().unwrap_or_default().trim().to_owned();
        first.split_whitespace().count() >= 4 && first.ends_with(['.', ':', '!', '?'])
    };
    let silent = files.iter().filter(|file| file.is_code_below("src/") && !is_opened(&file.text));
    silent
        .map(|file| {
            format!("{}:1: opens without a `//!` sentence that says what it decides", file.path)
        })
        .collect()
}

fn impure(files: &[File]) -> Vec<String> {
    let is_pure = |text: &str| {
        text.lines().map_while(|line| line.strip_prefix("//!")).any(|line| line.contains("Pure."))
    };
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.is_code_below("src/") && is_pure(&file.text)) {
        for (at, line) in file.code.lines().enumerate() {
            let found = IMPURE.iter().filter(|word| line.contains(*word));
            faults.extend(found.map(|word| {
                format!("{}:{}: `{word}` in a file that says it is pure", file.path, at + 1)
            }));
        }
    }
    faults
}

fn metrics_elsewhere(files: &[File]) -> Vec<String> {
    let is_metrics =
        |file: &File| file.path == "src/metrics.rs" || file.path.starts_with("src/metrics/");
    let mut faults = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.is_code_below("src/") && file.path != "src/metrics/family.rs")
    {
        let (word, fault) = match is_metrics(file) {
            true => (".register", "only `families!` of src/metrics/family.rs registers a family"),
            false => ("prometheus_client", "metrics are made below src/metrics"),
        };
        faults.extend(
            file.code
                .find(word)
                .map(|at| format!("{}:{}: {fault}", file.path, line_of(&file.code, at))),
        );
    }
    faults
}

fn empty_names(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in
        files.iter().filter(|file| file.is_code_below("src/") || file.is_code_below("tests/"))
    {
        let parts = file.path.trim_end_matches(".rs").split('/').map(|name| (1, name));
        let inline =
            file.code.lines().enumerate().filter_map(|(at, line)| Some((at + 1, declared(line)?)));
        for (line, name) in parts.chain(inline).filter(|(_, name)| EMPTY_NAMES.contains(name)) {
            faults.push(format!("{}:{line}: `{name}` says nothing", file.path));
        }
    }
    faults
}

fn silenced(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        for (at, _) in file.code.match_indices('#') {
            let attribute = file.code[at + 1..].trim_start_matches('!');
            let line = line_of(&file.code, at);
            if attribute.starts_with("[allow(") {
                faults.push(format!(
                    "{}:{line}: `allow`: write #[expect(.., reason = \"..\")]",
                    file.path
                ));
            } else if attribute.starts_with("[expect(")
                && !attribute.split(']').next().unwrap_or_default().contains("reason =")
            {
                faults.push(format!("{}:{line}: `expect` without a reason", file.path));
            }
        }
    }
    faults
}

fn commands(files: &[File]) -> Vec<String> {
    let text = files.iter().find(|file| file.path == "README.md").map_or("", |file| &file.text);
    let mut is_inside = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_inside = !is_inside;
        } else if is_inside {
            let command =
                line.trim_start_matches("$ ").split('#').next().unwrap_or_default().trim();
            found.extend((!command.is_empty()).then_some((at + 1, command)));
        }
    }
    let mut found = found.into_iter();
    for wanted in ["make demo", "make test"] {
        let (line, command) = found.next().unwrap_or((1, "nothing"));
        if command != wanted {
            return vec![format!(
                "README.md:{line}: the first two commands are `make demo`, `make test`; found `{command}`"
            )];
        }
    }
    Vec::new()
}

fn leaks(files: &[File]) -> Vec<String> {
    let is_key = |line: &str| {
        line.match_indices("sk-").any(|(at, mark)| {
            let before = line[..at].chars().next_back();
            let rest = line[at + mark.len()..].trim_start_matches("proj-");
            !before.is_some_and(char::is_alphanumeric)
                && rest.chars().take_while(char::is_ascii_alphanumeric).count() >= 20
        })
    };
    let homes = [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/")];
    let mut faults = Vec::new();
    for file in files {
        for (at, line) in file.text.lines().enumerate() {
            if is_key(line) || line.contains(concat!("PRIVATE ", "KEY-----")) {
                faults.push(format!("{}:{}: looks like a secret key", file.path, at + 1));
            }
            if homes.iter().any(|home| line.contains(home)) {
                faults.push(format!("{}:{}: names a folder of one machine", file.path, at + 1));
            }
        }
    }
    faults
}
