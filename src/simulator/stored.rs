//! Stored responses, from which `previous_response_id` continues.
//!
//! A response is stored for its project and found only there; a response of `store: false` is never
//! found over HTTP. Memory has a limit: the oldest histories are dropped first.

use std::collections::{HashMap, VecDeque};

use super::answer::Item;
use super::json::Document;
use super::prefix::History;
use super::refusal::Refusal;
use super::request::OpenCalls;

const MOST_BYTES: usize = 256 << 20;

/// A history up to and including one answer.
#[derive(Clone, Debug, Default)]
pub struct Past {
    pub history: History,
    pub calls: OpenCalls,
}

impl Past {
    /// The history with these items added.
    pub fn followed_by(mut self, items: &[Item]) -> Self {
        for item in items {
            let json = item.json();
            if let Ok(document) = Document::read(json.as_bytes()) {
                self.history.take(document.root());
                // This cannot fail: only an output could lack its call, and no answer holds an
                // output.
                let _ = self.calls.take(document.root());
            }
        }
        self
    }
}

#[derive(Debug, Default)]
pub struct Stored {
    responses: HashMap<String, (String, Past)>,
    oldest_first: VecDeque<String>,
    bytes: usize,
}

impl Stored {
    pub fn keep(&mut self, id: &str, project: &str, past: Past) {
        self.bytes += past.history.size();
        self.responses.insert(id.to_owned(), (project.to_owned(), past));
        self.oldest_first.push_back(id.to_owned());
        while self.bytes > MOST_BYTES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            let gone = self.responses.remove(&oldest);
            self.bytes -= gone.map_or(0, |(_, past)| past.history.size());
        }
    }

    /// Forgets a response that its client has deleted.
    pub fn forget(&mut self, id: &str) {
        let gone = self.responses.remove(id);
        self.bytes -= gone.map_or(0, |(_, past)| past.history.size());
    }

    /// Returns a stored history. `project` is the name of the organization and of the project
    /// together.
    pub fn find(&self, id: &str, project: &str) -> Result<Past, Refusal> {
        match self.responses.get(id) {
            Some((owner, past)) if owner == project => Ok(past.clone()),
            _ => {
                let message = format!("Previous response with id '{id}' not found.");
                Err(Refusal::invalid(
                    Some("previous_response_not_found"),
                    Some("previous_response_id"),
                    message,
                ))
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_found_in_its_own_project_only() {
        let mut stored = Stored::default();
        stored.keep("resp_1", "org-a/one", Past::default());
        assert!(stored.find("resp_1", "org-a/one").is_ok());
        let refusal = stored.find("resp_1", "org-a/two").expect_err("another project");
        assert_eq!(refusal.message, "Previous response with id 'resp_1' not found.");
        stored.clear();
        assert!(stored.find("resp_1", "org-a/one").is_err());
    }
}
