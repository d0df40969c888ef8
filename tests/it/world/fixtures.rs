//! Recorded requests of Codex, in every shape. Prose is replaced by filler; everything else is as
//! Codex sent it.

use crate::world::wire::{Headers, Request};

pub struct Shape {
    pub name: &'static str,
    pub headers: Headers,
    /// The body as it goes over the wire: compressed if Codex compresses it.
    pub body: Vec<u8>,
}

impl Shape {
    pub fn request(&self, token: &str) -> Request {
        let request = Request::new("POST", "/responses").bearer(token).body(self.body.clone());
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }

    pub fn holds(&self, word: &str) -> bool {
        memchr::memmem::find(&self.body, word.as_bytes()).is_some()
    }
}

macro_rules! shape {
    ($name:literal) => {
        shape(
            $name,
            include_str!(concat!("../../fixtures/", $name, ".head")),
            include_str!(concat!("../../fixtures/", $name, ".body")),
        )
    };
}

fn shape(name: &'static str, head: &str, body: &str) -> Shape {
    let headers: Headers = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let is_zstd = headers.iter().any(|(name, value)| name == "content-encoding" && value == "zstd");
    let body = if is_zstd {
        zstd::encode_all(body.as_bytes(), 3).expect("memory is enough")
    } else {
        body.as_bytes().to_vec()
    };
    Shape { name, headers, body }
}

pub fn shapes() -> Vec<Shape> {
    vec![
        shape!("first-turn"),
        shape!("tool-round"),
        shape!("resume"),
        shape!("sub-agent"),
        shape!("responses-lite"),
        shape!("compaction"),
        shape!("compacted"),
        shape!("zstd-first-turn"),
        shape!("zstd-tool-round"),
    ]
}
