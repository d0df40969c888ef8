//! Rules about names: a public type means one thing in the gateway, and the name of a test begins
//! with its noun.

use std::collections::BTreeMap;

use crate::source::{File, declared, line_of};

const KINDS: [&str; 4] = ["struct", "enum", "trait", "type"];
/// Modules beside the gateway, which may name a type as the gateway does.
const APART: [&str; 2] = ["simulator", "demo"];

/// Words that say nothing about a test's subject.
const NO_NOUNS: [&str; 20] = [
    "a", "all", "an", "any", "both", "each", "every", "it", "many", "no", "nothing", "one", "only",
    "same", "some", "the", "two", "what", "when", "who",
];

/// Private words that the gateway once used for terms of the field.
const OUTWORN: [&str; 19] = [
    "admission",
    "aside",
    "beat",
    "crowd",
    "desk",
    "detour",
    "fluent",
    "hearsay",
    "heir",
    "home",
    "meant",
    "news",
    "parting",
    "pulse",
    "refuge",
    "remedy",
    "surge",
    "verb",
    "witness",
];

/// Finds private words where the field has a term, in code and in papers.
pub fn outworn_words(files: &[File]) -> Vec<String> {
    let is_read = |file: &&File| {
        let is_text = file.path.ends_with(".rs") || file.path.ends_with(".md");
        is_text && !file.path.starts_with("tests/tidy")
    };
    let mut faults = Vec::new();
    for file in files.iter().filter(is_read) {
        for (number, line) in file.text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_ascii_alphabetic());
            faults.extend(words.filter(|word| OUTWORN.contains(word)).map(|word| {
                format!("{}:{}: `{word}` is no term of the field", file.path, number + 1)
            }));
        }
    }
    faults
}

/// Finds tests whose names do not begin with a noun.
pub fn tests_without_noun(files: &[File]) -> Vec<String> {
    let mut faults = Vec::new();
    let is_checked =
        |file: &&File| ["src/", "tests/"].iter().any(|folder| file.is_code_below(folder));
    for file in files.iter().filter(is_checked) {
        let mut is_test = false;
        for (at, line) in file.text.lines().map(str::trim).enumerate() {
            let is_attribute = line.starts_with("#[");
            is_test |= is_attribute && (line == "#[test]" || line.starts_with("#[tokio::test"));
            let Some((before, name)) = line.split_once("fn ").filter(|_| is_test && !is_attribute)
            else {
                continue;
            };
            is_test = false;
            let name = name.split('(').next().unwrap_or_default();
            let first = name.split('_').next().unwrap_or_default();
            if ["", "async "].contains(&before) && NO_NOUNS.contains(&first) {
                let place = format!("{}:{}", file.path, at + 1);
                faults.push(format!("{place}: `{name}` does not begin with its noun"));
            }
        }
    }
    faults
}

pub fn repeated_types(files: &[File]) -> Vec<String> {
    let tests: Vec<Vec<String>> = files.iter().flat_map(test_modules).collect();
    let is_checked = |file: &&File| {
        file.module().is_some_and(|module| {
            let is_test = tests.iter().any(|test| module.starts_with(&as_strs(test)));
            !is_test && module.first().is_none_or(|first| !APART.contains(first))
        })
    };
    let (mut places, mut faults) = (BTreeMap::new(), Vec::new());
    for file in files.iter().filter(is_checked) {
        for (at, name) in public_types(&file.code) {
            let place = format!("{}:{}", file.path, line_of(&file.code, at));
            match places.get(name) {
                Some(first) => {
                    faults.push(format!("{place}: `{name}` is the name of a type in {first}, too"))
                }
                None => _ = places.insert(name, place),
            }
        }
    }
    faults
}

fn as_strs(module: &[String]) -> Vec<&str> {
    module.iter().map(String::as_str).collect()
}

/// The modules that `file` declares for tests only.
fn test_modules(file: &File) -> Vec<Vec<String>> {
    let Some(module) = file.module() else { return Vec::new() };
    let marked = file.text.split("#[cfg(test)]").skip(1);
    let names = marked.filter_map(|rest| {
        rest.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#["))
    });
    let names = names.filter(|line| line.ends_with(';')).filter_map(declared);
    names.map(|name| module.iter().copied().chain([name]).map(String::from).collect()).collect()
}

/// The public types that the code declares, each with the position of its `pub`.
fn public_types(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, word) in code.match_indices("pub") {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let mut rest = &code[at + word.len()..];
        if let Some(scope) = rest.strip_prefix('(') {
            rest = scope.split_once(')').map_or("", |(_, rest)| rest);
        }
        let mut words = rest.split_whitespace();
        let kind =
            words.next().filter(|kind| KINDS.contains(kind) && rest.starts_with([' ', '\n']));
        if let (true, Some(_), Some(name)) = (is_word, kind, words.next()) {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            // A macro's `$name` is no name yet.
            found.extend(Some((at, &name[..end.unwrap_or(name.len())])).filter(|_| end != Some(0)));
        }
    }
    found
}
