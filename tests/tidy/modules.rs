//! Rules about the order of the modules: which module may use which.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, declared, paths};

pub fn out_of_order(files: &[File]) -> Vec<String> {
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

pub fn circles(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<_> = files.iter().filter_map(File::module).collect();
    let mut uses = Vec::new();
    for file in files {
        let Some(module) = file.module() else { continue };
        for (line, path) in paths(file) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let shared = module.iter().zip(&path).take_while(|(a, b)| a == b).count();
            // `out_of_order` checks the order of the top level. A parent and its child count as
            // one.
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
