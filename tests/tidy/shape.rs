//! Rules about the shape of a file: its length, its lines, its opening, its name.

use crate::source::{File, declared, without_literals};

/// Most lines of a file.
const LONGEST: usize = 400;
/// Most columns of a line.
const WIDEST: usize = 100;
/// Words that a file must not contain if its opening says `Pure.`, or if it is below `src/wire`:
/// waiting, clocks, the world outside.
const IMPURE: [&str; 11] = [
    ".await",
    "async ",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
    "time_of_day",
    "std::fs",
    "std::net",
    "std::env",
    "reqwest::",
    "getrandom",
];
/// Names that say nothing about the content.
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

pub fn too_long(files: &[File]) -> Vec<String> {
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

/// Finds lines that are too wide. A line that holds a string literal may be wider, since rustfmt
/// cannot break it.
pub fn too_wide(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    let is_checked =
        |file: &&File| ["src/", "tests/", "fuzz/"].iter().any(|folder| file.is_code_below(folder));
    for file in files.iter().filter(is_checked) {
        let code = without_literals(&file.text);
        for (at, (line, code)) in file.text.lines().zip(code.lines()).enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let is_inside_a_string = code.trim().is_empty();
            let holds_a_string = !is_comment && (line.contains('"') || is_inside_a_string);
            let columns = line.chars().count();
            if columns > WIDEST && !holds_a_string {
                let path = &file.path;
                faults.push(format!("{path}:{}: {columns} columns, at most {WIDEST}", at + 1));
            }
        }
    }
    faults
}

pub fn unopened(files: &[File]) -> Vec<String> {
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

pub fn impure(files: &[File]) -> Vec<String> {
    let is_pure = |text: &str| {
        text.lines().map_while(|line| line.strip_prefix("//!")).any(|line| line.contains("Pure."))
    };
    let mut faults = Vec::new();
    let must_be = |file: &&File| {
        file.is_code_below("src/wire/") || file.is_code_below("src/") && is_pure(&file.text)
    };
    for file in files.iter().filter(must_be) {
        for (at, line) in file.code.lines().enumerate() {
            let found = IMPURE.iter().filter(|word| line.contains(*word));
            faults.extend(found.map(|word| {
                format!("{}:{}: `{word}` in a file that says it is pure", file.path, at + 1)
            }));
        }
    }
    faults
}

pub fn empty_names(files: &[File]) -> Vec<String> {
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
