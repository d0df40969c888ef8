//! Rules about text that a file must not hold, and about the text with which the README opens.

use crate::source::{File, line_of};

pub fn metrics_elsewhere(files: &[File]) -> Vec<String> {
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

pub fn silenced(files: &[File]) -> Vec<String> {
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

pub fn commands(files: &[File]) -> Vec<String> {
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

pub fn leaks(files: &[File]) -> Vec<String> {
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
