//! The three shapes of Redis behind the same functions, for tests that hold on each shape.

use std::path::Path;

use super::Redis;
use super::sentinel::Sentinel;
use super::shards::Shards;

#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Standalone,
    Sentinel,
    Cluster,
}

pub enum Store {
    Standalone(Box<Redis>),
    Sentinel(Sentinel),
    Cluster(Shards),
}

impl Store {
    /// Starts this shape. Only a standalone Redis takes further arguments.
    pub async fn start(shape: Shape, folder: &Path, arguments: &[String]) -> Self {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match shape {
            Shape::Standalone => {
                Self::Standalone(Box::new(Redis::start_with(folder, &arguments).await))
            }
            Shape::Sentinel => Self::Sentinel(Sentinel::start(folder).await),
            Shape::Cluster => Self::Cluster(Shards::start(folder).await),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Standalone(redis) => redis.url(),
            Self::Sentinel(trio) => trio.url(),
            Self::Cluster(shards) => shards.url(),
        }
    }

    /// The nodes that take writes.
    pub async fn primaries(&self) -> Vec<&Redis> {
        match self {
            Self::Standalone(redis) => vec![redis],
            Self::Sentinel(trio) => vec![trio.primary().await],
            Self::Cluster(shards) => shards.primaries().await,
        }
    }

    /// Sends the same command to each primary.
    pub async fn run(&self, words: &[&str]) {
        for primary in self.primaries().await {
            primary.run(words).await;
        }
    }

    /// Asks the primary responsible for the name that is the last of these words.
    pub async fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        for primary in self.primaries().await {
            // All other primaries of a Cluster answer MOVED.
            if let Some(answer) = primary.try_ask(words).await {
                return answer;
            }
        }
        panic!("Redis answers {words:?}");
    }

    /// The name of every binding.
    pub async fn bindings(&self) -> Vec<String> {
        let mut names = Vec::new();
        for primary in self.primaries().await {
            names.extend(primary.bindings().await);
        }
        names
    }

    /// The name and the value of the only binding.
    pub async fn binding(&self) -> (String, String) {
        let mut names = self.bindings().await;
        assert_eq!(names.len(), 1, "one session: {names:?}");
        let name = names.remove(0);
        let value = self.ask(&["GET", &name]).await;
        (name, value)
    }
}
