//! Shows Warmkey's promise in a minute: plays the same Codex-shaped sessions through a single key,
//! through the usual gateways, and through Warmkey. The upstream's own record is the judge.
//!
//! Everything runs in this process on real sockets. The demo reads no environment variable and
//! connects to nothing outside this machine.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::server::listener::Listener;
use crate::simulator::{self, Simulator};
use crate::task::Tasks;

mod balance;
mod peer;
mod play;
mod script;
mod table;
mod tier;

use peer::Routing;
use play::{Playing, Transport};
use script::Session;
use table::{Row, Table};
use tier::Tier;

/// Two organizations of two keys each, like a team that has outgrown one key.
const KEYS: [(&str, &str); 4] =
    [("a-1", "org-a"), ("a-2", "org-a"), ("b-1", "org-b"), ("b-2", "org-b")];
const REPLICAS: usize = 3;
/// The protocols of an upstream for which no turn is translated.
const ALL: &str = r#""responses", "websocket", "chat""#;
/// Replicas of the edge, where there are two tiers.
const EDGES: usize = 2;
/// The edge's credentials at the gateway behind it: its client token, and the hop secret, without
/// which that gateway ignores the edge's session ids.
const EDGE: &str = "wk-edge";
const HOP: &str = "the secret of the demo's two tiers";
/// The simulator's clock runs this many times faster. A turn every tenth of a second therefore
/// counts as one every ten seconds, which is Codex's pace.
const TIME_SCALE: u32 = 100;

/// Runs the demo and writes its table to `out`. Returns whether the promise held.
pub async fn run(out: &mut (impl Write + Send)) -> Result<bool, String> {
    let tasks = Tasks::new();
    let upstream = Upstream::start(&tasks)?;
    let sessions = script::sessions();
    let mut table = Table::default();

    for (name, routing) in [
        ("single key", Routing::Single),
        ("round robin", Routing::RoundRobin),
        ("user sticky", Routing::UserSticky),
    ] {
        let way = Way::Peer(routing);
        table.add(upstream.play((name, Transport::Http), way, &sessions, &tasks, out).await?);
    }
    for (name, transport, speaks) in [
        ("warmkey http", Transport::Http, ALL),
        ("warmkey websocket", Transport::WebSocket, ALL),
        ("warmkey chat", Transport::Chat, ALL),
        ("warmkey chat translated", Transport::Chat, "\"responses\""),
    ] {
        let way = Way::Warmkey(vec![upstream.gateway(&tasks, speaks).await?]);
        table.add(upstream.play((name, transport), way, &sessions, &tasks, out).await?);
    }
    let inner = upstream.gateway(&tasks, ALL).await?;
    let edge = Tier::start(EDGES, edge_config(inner.address), &tasks).await?;
    let (row, way) = (("warmkey two tiers", Transport::Http), Way::Warmkey(vec![inner, edge]));
    table.add(upstream.play(row, way, &sessions, &tasks, out).await?);
    let _ = writeln!(out, "\n{table}");
    Ok(table.is_pass())
}

/// A way of routing.
enum Way {
    Peer(Routing),
    /// Tiers of Warmkey. Clients call the last one.
    Warmkey(Vec<Tier>),
}

impl Way {
    /// Returns the address that clients call.
    fn address(&self, upstream: SocketAddr, tasks: &Tasks) -> Result<SocketAddr, String> {
        match self {
            Self::Peer(routing) => {
                peer::start(*routing, upstream, tasks).map_err(|error| error.to_string())
            }
            Self::Warmkey(tiers) => {
                tiers.last().map(|tier| tier.address).ok_or_else(|| "no tier".into())
            }
        }
    }

    /// Restarts every replica. A proxy that keeps nothing is simply started anew.
    async fn restart(&mut self) -> Result<(), String> {
        if let Self::Warmkey(tiers) = self {
            for tier in tiers.iter_mut().rev() {
                tier.restart().await?;
            }
        }
        Ok(())
    }
}

/// The simulated upstream, against which each row is played.
struct Upstream {
    simulator: Arc<Simulator>,
    address: SocketAddr,
}

impl Upstream {
    fn start(tasks: &Tasks) -> Result<Self, String> {
        let simulator = Simulator::new(&Self::config()?)?;
        let listener = bind().map_err(|error| error.to_string())?;
        let address = listener.address().map_err(|error| error.to_string())?;
        tasks.spawn_until_stopped(Arc::clone(&simulator).serve(
            listener,
            tasks.clone(),
            CancellationToken::new(),
        ));
        Ok(Self { simulator, address })
    }

    fn config() -> Result<simulator::Config, String> {
        let keys: String = KEYS
            .iter()
            .map(|(id, organization)| {
                format!("[[sim.key]]\nid = \"{id}\"\nsecret = \"{}\"\norganization = \"{organization}\"\n", secret(id))
            })
            .collect();
        Ok(Config::parse(&format!(
            "[sim]\ntime_scale = {TIME_SCALE}.0\nprefill = \"5ms\"\n{keys}"
        ))?
        .sim)
    }

    /// Replicas of Warmkey behind a balancer, with no session yet. `speaks`: what the upstream is
    /// said to speak.
    async fn gateway(&self, tasks: &Tasks, speaks: &str) -> Result<Tier, String> {
        Tier::start(REPLICAS, self.gateway_config(speaks), tasks).await
    }

    fn gateway_config(&self, speaks: &str) -> String {
        let keys: String = KEYS
            .iter()
            .map(|(id, organization)| {
                let secret = secret(id);
                format!("[[key]]\nid = \"{id}\"\nupstream = \"demo\"\norganization = \"{organization}\"\nsecret = \"{secret}\"\n")
            })
            .collect();
        let edge = format!("[[client]]\nid = \"edge\"\ntoken = \"{EDGE}\"\n");
        config(self.address, ("openai", speaks), &format!("{keys}{edge}"))
    }

    /// Plays all sessions, restarts what they were played through, and resumes some of them. Reads
    /// the upstream's record of them.
    async fn play(
        &self,
        (name, transport): (&'static str, Transport),
        mut way: Way,
        sessions: &[Session],
        tasks: &Tasks,
        out: &mut impl Write,
    ) -> Result<Row, String> {
        let count: usize = sessions.iter().map(Session::turns).sum();
        let _ = write!(out, "{name:<23} {} sessions, {count} turns ... ", sessions.len());
        let _ = out.flush();
        self.simulator.reset();
        let began = Instant::now();
        let mut play = Playing::new(sessions, transport)?;
        play.begin(way.address(self.address, tasks)?).await?;
        way.restart().await?;
        play.resume(way.address(self.address, tasks)?).await?;
        let _ = writeln!(out, "{:.1} s", began.elapsed().as_secs_f64());
        Ok(Row::new(name, &self.simulator.turns(), play.first_token()))
    }
}

/// The configuration of an edge in front of the gateway at `inner`.
fn edge_config(inner: SocketAddr) -> String {
    let key = format!(
        "[[key]]\nid = \"inner\"\nupstream = \"demo\"\norganization = \"inner\"\nsecret = \"{EDGE}\"\n"
    );
    config(inner, ("gateway", ALL), &key)
}

/// The configuration of a replica in front of the upstream at `address`, with the demo's users.
fn config(address: SocketAddr, (kind, speaks): (&str, &str), lists: &str) -> String {
    let users: String = (0..script::USERS)
        .map(|user| {
            format!("[[client]]\nid = \"user-{user}\"\ntoken = \"{}\"\n", script::token(user))
        })
        .collect();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\ndrain = \"1s\"\nsecret = \"the demo's secret, which nobody else has\"\n\
         [hop]\nsecret = \"{HOP}\"\n[ledger]\nurl = \"none:\"\n[[upstream]]\nname = \"demo\"\n\
         kind = \"{kind}\"\nbase_url = \"http://{address}/v1\"\nspeaks = [{speaks}]\n{lists}{users}"
    )
}

/// A simulated key's secret, which only the simulator of this process accepts.
fn secret(id: &str) -> String {
    format!("sk-simulated-{id}")
}

fn bind() -> std::io::Result<Listener> {
    Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), std::time::Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::judge::Turn;

    #[tokio::test]
    async fn session_over_a_websocket_is_played_as_codex_plays_it() {
        let tasks = Tasks::new();
        let upstream = Upstream::start(&tasks).expect("an upstream");
        let way = Way::Warmkey(vec![upstream.gateway(&tasks, ALL).await.expect("a gateway")]);
        let sessions = &script::sessions()[..1];
        let row = ("", Transport::WebSocket);
        let row = upstream.play(row, way, sessions, &tasks, &mut Vec::new()).await;
        assert!(row.is_ok(), "{:?}", row.err());

        // The root's connection, the sub-agent's, and the root's second one.
        let turns = upstream.simulator.turns();
        let on = |socket: &simulator::sockets::Socket| {
            let own = turns.iter().filter(|turn| turn.connection == Some(socket.connection));
            own.map(|turn| (turn.prewarm, turn.previous_response_id.is_some())).collect::<Vec<_>>()
        };
        let (root, subagent) =
            (&sessions[0].root, sessions[0].subagent.as_ref().expect("a sub-agent"));
        let dropped = root.drops_at.expect("a drop");
        let (begun, alone, next) = ((true, false), (false, false), (false, true));
        let mut expected = vec![
            [vec![begun], vec![next; dropped]].concat(),
            [vec![begun], vec![next; subagent.turns]].concat(),
            [vec![alone], vec![next; root.turns - dropped - 1]].concat(),
        ];
        let mut played: Vec<_> = upstream.simulator.sockets().iter().map(on).collect();
        expected.sort();
        played.sort();
        assert_eq!(played, expected);

        // The upstream has cached the whole history: after the drop, all of it is read from the
        // cache.
        let whole = |turn: &&Turn| !turn.prewarm && turn.previous_response_id.is_none();
        let whole = turns.iter().find(whole).expect("a turn without a response before it");
        let before = turns
            .iter()
            .filter(|turn| turn.at < whole.at && turn.input_tokens < whole.input_tokens);
        let longest = before.map(|turn| turn.input_tokens).max().expect("turns before it");
        assert!(whole.cached_tokens + 128 >= longest, "{} of {longest}", whole.cached_tokens);
    }
}
