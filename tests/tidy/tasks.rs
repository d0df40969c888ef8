//! Tasks that begin again after a panic, of which a test panics each one.

use crate::source::{File, line_of};

/// The test that panics each task once.
const TEST: &str = "tests/it/pressure/tasks.rs";
/// What makes a task begin again: the first argument is its name.
const KEPT: [&str; 3] = ["spawn_kept(", "spawn_kept_to_its_end(", "must_panic("];

/// Tasks that the test does not name.
pub fn untested_tasks(files: &[File]) -> Vec<String> {
    let test = files.iter().find(|file| file.path == TEST).map_or("", |file| &file.text);
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.is_code_below("src/") && file.path != "src/task.rs")
    {
        for call in KEPT {
            for (at, _) in file.code.match_indices(call) {
                let place = format!("{}:{}", file.path, line_of(&file.code, at));
                match name(&file.text, &file.text[at + call.len()..]) {
                    None => faults.push(format!("{place}: the name of the task is no text")),
                    Some(name) if !test.contains(&format!("\"{name}\"")) => {
                        faults.push(format!("{place}: {TEST} does not name `{name}`"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    faults
}

/// The name at the beginning of `arguments`: a text, or a constant of the same file.
fn name<'t>(file: &'t str, arguments: &'t str) -> Option<&'t str> {
    let first = arguments.trim_start();
    if let Some(text) = first.strip_prefix('"') {
        return text.split('"').next();
    }
    let constant = first.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let (_, value) = file.split_once(&format!("const {constant}: &str = \""))?;
    value.split('"').next()
}
