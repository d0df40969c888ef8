//! The repository as the rules see it: its text files and, for Rust files, the code in use and the
//! paths that it names.
//!
//! This module only reads. It knows as much of the language as the rules need.

use std::process::Command;

/// A text file of the repository. `code` is its text in which everything but code in use is
/// blanked.
pub struct File {
    pub path: String,
    pub text: String,
    pub code: String,
}

impl File {
    pub fn is_code_below(&self, folder: &str) -> bool {
        self.path.starts_with(folder) && self.path.ends_with(".rs")
    }

    /// Returns the module path: `src/key/place.rs` is `["key", "place"]`, and the root is empty.
    /// `None`: the file is the command line or a test, which the module rules exempt.
    pub fn module(&self) -> Option<Vec<&str>> {
        let inside = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let mut module: Vec<_> = inside.split('/').collect();
        module.pop_if(|last| *last == "mod" || *last == "lib");
        (inside != "main" && !module.contains(&"tests")).then_some(module)
    }
}

pub fn file(path: &str, text: &str) -> File {
    let code = if path.ends_with(".rs") { code(text) } else { String::new() };
    File { path: path.into(), text: text.into(), code }
}

/// Returns every text file that git knows or would add.
pub fn repository() -> Vec<File> {
    let paths = listed(&["--cached", "--others", "--exclude-standard"]);
    paths.iter().filter_map(|path| Some(file(path, &std::fs::read_to_string(path).ok()?))).collect()
}

pub fn listed(which: &[&str]) -> Vec<String> {
    // The checkout may belong to another user, as in a container. Git only reads it here.
    let git = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files"])
        .args(which)
        .output()
        .expect("these tests need git");
    assert!(git.status.success(), "git ls-files: {}", String::from_utf8_lossy(&git.stderr));
    String::from_utf8_lossy(&git.stdout).lines().map(String::from).collect()
}

pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Returns the name in a line like `pub mod name;`.
pub fn declared(line: &str) -> Option<&str> {
    let (visibility, name) = line.trim().split_once("mod ")?;
    let bare = visibility.is_empty() || visibility.starts_with("pub");
    bare.then(|| name.trim_end_matches([';', ' ', '{', '}']))
}

/// Returns every path that the code of `file` names by `crate`, `super` or `self`, from the crate's
/// root, with its line.
pub fn paths(file: &File) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let module = file.module().unwrap_or_default();
    for start in ["crate", "super", "self"] {
        for (at, _) in file.code.match_indices(start) {
            let (before, rest) = (&file.code[..at], &file.code[at + start.len()..]);
            let Some(rest) = rest.strip_prefix("::") else { continue };
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let kept = match start {
                "crate" => 0,
                "super" => module.len().saturating_sub(1),
                _ => module.len(),
            };
            let base = module[..kept].iter().map(|name| name.to_string()).collect();
            let mut leaves = Vec::new();
            branch(rest, base, &mut leaves);
            found.extend(leaves.into_iter().map(|leaf| (line_of(&file.code, at), leaf)));
        }
    }
    found
}

/// Reads one branch of a path like `a::{b, c::d}` into its leaves, and returns the text behind it.
fn branch<'a>(mut rest: &'a str, mut path: Vec<String>, leaves: &mut Vec<Vec<String>>) -> &'a str {
    loop {
        rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while let Some(next) = rest.trim_start().chars().next().filter(|next| *next != '}') {
                let before = rest.trim_start();
                rest = if next.is_alphanumeric() || next == '_' {
                    branch(before, path.clone(), leaves)
                } else {
                    &before[next.len_utf8()..]
                };
            }
            return rest.trim_start().strip_prefix('}').unwrap_or(rest);
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        match &rest[..end] {
            "" | "self" => {}
            "super" => _ = path.pop(),
            name => path.push(name.into()),
        }
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(more) if end > 0 => rest = more,
            _ => {
                leaves.push(path);
                return rest;
            }
        }
    }
}

/// Blanks comments, literals and test code. Every line keeps its number.
fn code(text: &str) -> String {
    let mut code = without_literals(text);
    while let Some(at) = code.find("#[cfg(test)]") {
        let end = item_end(&code, at);
        let blanked: String =
            code[at..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        code.replace_range(at..end, &blanked);
    }
    code
}

/// Blanks comments and literals. Every line keeps its number.
pub fn without_literals(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut blank = |from: usize, to: usize| {
        out[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ')
    };
    let after = |from: usize, what: &str| {
        text.get(from..)
            .and_then(|rest| rest.find(what))
            .map_or(text.len(), |at| from + at + what.len())
    };
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let hashes = rest.iter().skip(1).take_while(|byte| **byte == b'#').count();
        let end = match rest {
            [b'/', b'/', ..] => after(at, "\n"),
            [b'/', b'*', ..] => after(at + 2, "*/"),
            [b'r', ..] if rest.get(hashes + 1) == Some(&b'"') => {
                after(at + hashes + 2, &format!("\"{}", "#".repeat(hashes)))
            }
            [b'"', ..] => {
                let mut end = at + 1;
                while end < text.len() && text.as_bytes()[end] != b'"' {
                    end += if text.as_bytes()[end] == b'\\' { 2 } else { 1 };
                }
                (end + 1).min(text.len())
            }
            [b'\'', b'\\', ..] => after(at + 3, "'"),
            // One character between quotes is a literal; any other quote begins a lifetime.
            [b'\'', ..] => text[at + 1..]
                .char_indices()
                .nth(1)
                .filter(|(_, c)| *c == '\'')
                .map_or(at + 1, |(more, _)| at + more + 2),
            _ => at + 1,
        };
        if end > at + 1 {
            blank(at, end);
        }
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns the end of the item that starts at `at`: its semicolon, or the brace that closes its
/// first one.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (more, c) in code[at..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + more + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + more + 1,
            _ => {}
        }
    }
    code.len()
}
