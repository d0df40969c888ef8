//! A day in minutes: sessions whose causes of coldness are known. Every cold turn has the right
//! reason, and the ledger's sums are the judge's, whatever happens to the database meanwhile.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream;
use sqlx::Connection as _;

use super::written_at;
use crate::world::cluster::{Cluster, Running};
use crate::world::codex::{Codex, Talk};
use crate::world::postgres::Postgres;
use crate::world::postgres::wire::Wire;
use crate::world::process::Folder;
use crate::world::simulator::{Key, siblings};
use crate::world::waiting::{SOON, eventually, is_long};

mod telling;

use telling::{age, compared, hash, judge};

/// Sessions that play at once.
const AT_ONCE: usize = 16;
/// Number of sessions, in the short and in the long version. Each story has as many as any other.
const SESSIONS: [usize; 2] = [112, 2_000];

/// What happens to a session in its third turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Grows,
    Model,
    Tools,
    Effort,
    History,
    /// Its key is disabled, and another region serves.
    Region,
    /// Its key is disabled after the cache was lost, and a sibling serves.
    Sibling,
    Expires,
    /// The upstream forgets early.
    Forgotten,
    Fork,
    Agent,
    Compaction,
    Title,
    WebSocket,
    /// Another model on an open WebSocket.
    Talk,
    /// Its input is too short for any cache.
    Short,
}

const STORIES: [Story; 16] = [
    Story::Grows,
    Story::Model,
    Story::Tools,
    Story::Effort,
    Story::History,
    Story::Region,
    Story::Sibling,
    Story::Expires,
    Story::Forgotten,
    Story::Fork,
    Story::Agent,
    Story::Compaction,
    Story::Title,
    Story::WebSocket,
    Story::Talk,
    Story::Short,
];

impl Story {
    /// The client whose organizations the story's sessions use.
    const fn client(self) -> &'static str {
        match self {
            Self::Region => "regional",
            Self::Sibling => "siblings",
            _ => "anywhere",
        }
    }

    /// Whether the story ends only after the caches have lost everything.
    const fn is_late(self) -> bool {
        matches!(self, Self::Sibling | Self::Expires | Self::Forgotten)
    }
}

/// A turn's kind, and the reason why it was cold.
type Told = (String, Option<String>);

struct Player {
    story: Story,
    codex: Codex,
    talk: Option<Talk>,
    /// Sessions, with what the ledger must say of their turns.
    expected: BTreeMap<String, Vec<Told>>,
}

impl Player {
    fn new(cluster: &Running, number: usize) -> Self {
        let story = STORIES[number % STORIES.len()];
        let replica = &cluster.replicas[number / STORIES.len() % cluster.replicas.len()];
        let token = format!("token-of-{}", story.client());
        let codex = Codex::new(replica.address(), &token);
        let codex = match story {
            // A cache key of its own always separates a fork from its parent.
            Story::Effort | Story::Fork => codex.model("gpt-6-sol"),
            Story::Title => codex.titles(),
            Story::Short => codex.says_little(),
            _ => codex,
        };
        let is_talk = matches!(story, Story::WebSocket | Story::Talk);
        let talk = is_talk.then(|| codex.clone().by_websocket());
        Self { story, codex, talk, expected: BTreeMap::new() }
    }

    fn expect(&mut self, kind: &str, reason: Option<&str>) {
        let told = (kind.to_owned(), reason.map(str::to_owned));
        self.expected.entry(self.codex.session.clone()).or_default().push(told);
    }

    async fn turn(&mut self, reason: Option<&str>) {
        match &mut self.talk {
            Some(talk) => drop(talk.turn("go on").await),
            None => drop(self.codex.turn("go on").await.served()),
        }
        self.expect("turn", reason);
    }

    /// Plays the first two turns: a beginning, and a turn that finds it in the cache.
    async fn begins(mut self) -> Self {
        if self.story == Story::Title {
            self.codex.turn("make a title").await.served();
            self.expect("title", None);
            return self;
        }
        if self.story == Story::Short {
            for _ in 0..2 {
                self.turn(Some("below_minimum")).await;
            }
            return self;
        }
        if self.talk.is_some() {
            self.expect("prewarm", None);
            // The prewarm has left the beginning in the cache.
            self.turn(None).await;
        } else {
            self.turn(Some("first_turn")).await;
        }
        self.turn(None).await;
        self
    }

    /// Plays the turns to which something happens.
    async fn goes_on(mut self, other: std::net::SocketAddr) -> Self {
        // Each turn may meet another replica.
        self.codex.moves_to(other);
        match self.story {
            Story::Model => {
                self.codex.asks("gpt-5.2");
                self.turn(Some("model_changed")).await;
            }
            Story::Tools => {
                self.codex.changes_tools();
                self.turn(Some("prefix_changed")).await;
            }
            Story::Effort => {
                self.codex.changes_effort();
                self.turn(Some("prefix_changed")).await;
            }
            Story::History => {
                self.codex.edits_history();
                self.turn(Some("prefix_changed")).await;
            }
            Story::Fork => {
                // A cache key of its own separates the fork from its parent's cache.
                self.codex = self.codex.fork();
                self.turn(Some("first_turn")).await;
            }
            Story::Agent => {
                let mut agent = self.codex.spawn();
                agent.turn("look into it").await.served();
                // The fork begins with its parent's history.
                self.expect("turn", None);
                agent.turn("look again").await.served();
                self.expect("turn", None);
            }
            Story::Compaction => {
                self.codex.compacts().await.served();
                self.expect("compaction", None);
                self.turn(None).await;
            }
            Story::Talk => {
                let talk = self.talk.as_mut().expect("it talks");
                talk.codex.asks("gpt-5.2");
                self.turn(Some("model_changed")).await;
            }
            Story::Short => {
                self.turn(Some("below_minimum")).await;
                return self;
            }
            Story::Title => return self,
            _ => {}
        }
        self.turn(None).await;
        self
    }
}

async fn each<F: Future<Output = Player>>(
    players: Vec<Player>,
    play: impl Fn(Player) -> F,
) -> Vec<Player> {
    stream::iter(players).map(play).buffer_unordered(AT_ONCE).collect().await
}

/// Three clients, so that some sessions live where a test moves them.
fn scene(cluster: Cluster) -> Cluster {
    let keys = [
        siblings("org-a", 2),
        vec![Key::new("org-b-us", "org-b"), Key::new("org-b-eu", "org-b").of_region("eu")],
        siblings("org-c", 2),
    ];
    let client = |id: &str, organization: &str| {
        format!(
            "[[client]]\nid = {id:?}\ntoken = \"token-of-{id}\"\norganizations = [{organization:?}]\n"
        )
    };
    let clients =
        [client("anywhere", "org-a"), client("regional", "org-b"), client("siblings", "org-c")];
    cluster.keys(keys.concat()).clients(&clients.concat())
}

/// The key of each session's last turn.
async fn keys(cluster: &Running) -> BTreeMap<String, String> {
    let turns = cluster.turns().await.into_iter().filter(|turn| !turn.key.is_empty());
    turns.filter_map(|turn| Some((turn.session?, turn.key))).collect()
}

/// The key that most of these sessions are on.
fn most_used<'k>(keys: impl Iterator<Item = &'k String>) -> String {
    let mut counts = BTreeMap::<&String, usize>::new();
    keys.for_each(|key| *counts.entry(key).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).expect("a session").0.clone()
}

/// Disables a key on every replica.
async fn disable(cluster: &Running, key: &str) {
    cluster.replica().command("disable", key).await;
    for replica in &cluster.replicas {
        let series = format!("warmkey_key_state{{key={key:?},state=\"disabled\"}}");
        replica.shows(&series, 1.0).await;
    }
}

/// Plays the whole day. Returns what the ledger must state of every session of each client.
async fn play(
    cluster: &Running,
    mut halfway: impl AsyncFnMut(usize),
) -> Vec<(Story, BTreeMap<String, Vec<Told>>)> {
    let count = SESSIONS[usize::from(is_long())];
    let players: Vec<_> = (0..count).map(|number| Player::new(cluster, number)).collect();
    halfway(0).await;
    let players = each(players, Player::begins).await;
    let is_compared = |player: &&Player| !matches!(player.story, Story::Title | Story::Short);
    let begun = players.iter().filter(is_compared).count();
    compared(cluster, 2 * begun).await;
    halfway(1).await;
    let other = cluster.replicas.last().expect("one").address();
    let before = keys(cluster).await;
    // Each move happens to at least half of these sessions.
    let [region, sibling] = [Story::Region, Story::Sibling].map(|story| {
        let sessions = players.iter().filter(|player| player.story == story);
        most_used(sessions.map(|player| &before[&player.codex.session]))
    });
    disable(cluster, &region).await;
    let (late, players): (Vec<_>, Vec<_>) =
        players.into_iter().partition(|player| player.story.is_late());
    let (regional, players): (Vec<_>, Vec<_>) =
        players.into_iter().partition(|player| player.story == Story::Region);
    let mut done = each(players, |player| player.goes_on(other)).await;
    done.extend(
        each(regional, async |mut player| {
            player.codex.moves_to(other);
            let is_moved = before[&player.codex.session] == region;
            player.turn(is_moved.then_some("domain_moved")).await;
            player.turn(None).await;
            player
        })
        .await,
    );
    halfway(2).await;
    // The caches lose everything; for some sessions, half an hour has passed, too.
    cluster.upstream().advance("31m").await;
    disable(cluster, &sibling).await;
    let mut expiring = Vec::new();
    for player in late.iter().filter(|player| player.story == Story::Expires) {
        expiring.push(hash(cluster, player.story.client(), &player.codex.session).await);
    }
    let is_aged = age(cluster, &expiring).await;
    done.extend(
        each(late, async |mut player| {
            player.codex.moves_to(other);
            let reason = match player.story {
                Story::Expires if is_aged => "expired",
                Story::Sibling if before[&player.codex.session] == sibling => "key_moved",
                _ => "upstream",
            };
            player.turn(Some(reason)).await;
            player.turn(None).await;
            player
        })
        .await,
    );
    done.into_iter().map(|player| (player.story, player.expected)).collect()
}

/// Two replicas write at once, the database is killed and comes back, and a commit goes
/// unanswered.
#[tokio::test]
async fn day_is_told_truly_in_postgresql() {
    let folder = Folder::new();
    let mut postgres = Postgres::start(folder.path()).await;
    let wire = Wire::to(postgres.address()).await;
    let ledger = written_at(&postgres.url_at(wire.address()));
    let cluster = scene(ledger).redis().replicas(2).start().await;
    let day = play(&cluster, async |part| match part {
        0 => wire.swallow(2),
        1 => postgres.kill().await,
        _ => postgres.restart().await,
    })
    .await;
    eventually(SOON, "commits go unanswered", async || (wire.left() == 0).then_some(())).await;
    judge(&cluster, day).await;
}

/// Another process keeps the file locked for a part of the day.
#[tokio::test]
async fn day_is_told_truly_in_a_file() {
    let cluster = scene(written_at("sqlite:ledger.db")).start().await;
    let file = cluster.replica().file().with_file_name("ledger.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut lock = None;
    let day = play(&cluster, async |part| match part {
        1 => {
            let mut connection =
                sqlx::SqliteConnection::connect_with(&options).await.expect("a connection");
            sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.expect("a lock");
            lock = Some(connection);
        }
        2 => {
            let connection = lock.take().expect("it was locked");
            connection.close().await.expect("it is unlocked");
        }
        _ => {}
    })
    .await;
    judge(&cluster, day).await;
}
