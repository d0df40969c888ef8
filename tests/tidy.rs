//! The house rules that a machine can check. Each test first reads a small example that breaks its
//! rule, which shows that the test can fail, and then the repository. A fault names its file and
//! line.

use content::{commands, leaks, metrics_elsewhere, silenced};
use modules::{circles, out_of_order};
use names::{outworn_words, repeated_types, tests_without_noun};
use shape::{empty_names, impure, too_long, too_wide, unopened};
use source::{file, listed, repository};
use tasks::untested_tasks;

#[path = "tidy/content.rs"]
mod content;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tasks.rs"]
mod tasks;

#[test]
fn module_uses_only_what_is_declared_before_it() {
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
fn submodules_use_each_other_in_no_circle() {
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
fn source_file_has_at_most_400_lines() {
    assert_eq!(
        too_long(&[file("tests/it/long.rs", &"\n".repeat(401))]),
        ["tests/it/long.rs:401: 401 lines, at most 400: it is two"]
    );
    assert_none(too_long(&repository()));
}

#[test]
fn line_has_at_most_100_columns_unless_it_holds_a_string() {
    let (code, comment) = ("x".repeat(101), format!("// \"{}\"", "x".repeat(96)));
    let string = format!("f(\"{}\");\nf(\"a \\\n  {}\");", "x".repeat(96), "x".repeat(99));
    let wrong =
        [file("src/a.rs", &format!("{code}\n{string}\n{comment}\n")), file("docs/a.md", &code)];
    assert_eq!(
        too_wide(&wrong),
        ["src/a.rs:1: 101 columns, at most 100", "src/a.rs:5: 101 columns, at most 100"]
    );
    assert_none(too_wide(&repository()));
}

#[test]
fn public_type_has_a_name_of_its_own() {
    let wrong = [
        file("src/key.rs", "pub struct Key;\npub struct Error;\n#[cfg(test)]\nmod machine;"),
        file("src/turn.rs", "struct Key;\npub(crate) enum\n    Key {}\npub enum Error {}"),
        file("src/key/machine.rs", "pub struct Key;"),
        file("src/simulator/key.rs", "pub struct Key;"),
        file("src/turn/tests.rs", "pub struct Key;"),
    ];
    assert_eq!(
        repeated_types(&wrong),
        [
            "src/turn.rs:2: `Key` is the name of a type in src/key.rs:1, too",
            "src/turn.rs:4: `Error` is the name of a type in src/key.rs:2, too",
        ]
    );
    assert_none(repeated_types(&repository()));
}

#[test]
fn term_of_the_field_is_used_where_there_is_one() {
    let wrong = [
        file("src/a.rs", "/// Their home.\nfn first_home() {}"),
        file("docs/a.md", "A witness,\nand its HOME."),
        file("a.toml", "home = 1"),
    ];
    let faults = outworn_words(&wrong);
    let places: Vec<_> = faults.iter().filter_map(|fault| fault.split(": ").next()).collect();
    assert_eq!(places, ["src/a.rs:1", "src/a.rs:2", "docs/a.md:1"]);
    assert_none(outworn_words(&repository()));
}

#[test]
fn name_of_a_test_begins_with_its_noun() {
    let wrong = [
        file("src/a.rs", "#[test]\n#[ignore]\nfn every_key_opens() {}\nfn a_key() {}"),
        file("tests/it/b.rs", "#[tokio::test(start_paused = true)]\nasync fn one_key_opens() {}"),
        file("tests/it/c.rs", "#[test]\nfn key_opens() {}\n#[test]\nfn only_one_opens() {}"),
    ];
    let fault = "does not begin with its noun";
    assert_eq!(
        tests_without_noun(&wrong),
        [
            format!("src/a.rs:3: `every_key_opens` {fault}"),
            format!("tests/it/b.rs:2: `one_key_opens` {fault}"),
            format!("tests/it/c.rs:4: `only_one_opens` {fault}"),
        ]
    );
    assert_none(tests_without_noun(&repository()));
}

#[test]
fn file_opens_with_a_sentence_on_what_it_decides() {
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
fn pure_file_waits_for_nothing_and_asks_no_clock() {
    let body = "fn f() { // .await\n    let now = Instant::now();\n}\n#[cfg(test)]\nmod tests { use std::fs; }";
    let wrong = [
        file("src/a.rs", &format!("//! Decides much. Pure.\n{body}")),
        file("src/b.rs", &format!("//! Does much.\n{body}")),
    ];
    assert_eq!(impure(&wrong), ["src/a.rs:3: `Instant::now` in a file that says it is pure"]);
    assert_none(impure(&repository()));
}

#[test]
fn metrics_are_registered_in_one_place() {
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
fn task_that_begins_again_panics_in_a_test() {
    let calls = "tasks.spawn_kept(\n    \"one\", f);\ntasks.spawn_kept_to_its_end(\"two\", f);";
    let wrong = [
        file("tests/it/pressure/tasks.rs", "vec![\"one\"]"),
        file("src/a.rs", calls),
        file("src/b.rs", "const NAME: &str = \"three\";\nfn f() { must_panic(NAME) }"),
        file("src/c.rs", "tasks.spawn_kept(name, f);"),
        file("src/d.rs", "#[cfg(test)]\nmod tests { fn f() { tasks.spawn_kept(\"four\", f) } }"),
    ];
    assert_eq!(
        untested_tasks(&wrong),
        [
            "src/a.rs:3: tests/it/pressure/tasks.rs does not name `two`",
            "src/b.rs:2: tests/it/pressure/tasks.rs does not name `three`",
            "src/c.rs:1: the name of the task is no text",
        ]
    );
    assert_none(untested_tasks(&repository()));
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
fn lint_exception_carries_its_reason() {
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
fn readme_opens_with_its_two_commands() {
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
fn secrets_and_folders_of_one_machine_are_not_committed() {
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
fn lock_file_is_committed() {
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
