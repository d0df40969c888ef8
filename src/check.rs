//! Runs `warmkey check`: describes what `warmkey serve` would run, and tries the store and the
//! ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::app::{STORE_START_TIMEOUT, TASK_END_TIMEOUT, replica_name};
use crate::config::{Plan, StoreChoice};
use crate::database::{Database, DatabaseAddress};
use crate::key::Key;
use crate::metrics::Metrics;
use crate::process::Descriptors;
use crate::server::operator::Access;
use crate::setting::Span;
use crate::store::name::Name;
use crate::store::{self, MemberReport, Store, Unavailable};
use crate::task::Tasks;

/// Describes in plain words what `warmkey serve` would run.
pub fn describe(plan: &Plan, descriptors: Descriptors) -> String {
    let (server, keys) = (&plan.fixed.config.server, plan.table.keys());
    let mut organizations: Vec<_> = keys.iter().map(|key| key.organization.as_str()).collect();
    organizations.sort_unstable();
    organizations.dedup();
    let clients = match (server.open, plan.clients.len()) {
        (true, _) => "anybody, without a token".to_owned(),
        (false, 0) => "nobody: no client has a token".to_owned(),
        (false, 1) => "one client token".to_owned(),
        (false, count) => format!("{count} client tokens"),
    };
    let store = match &plan.fixed.store {
        StoreChoice::Memory => "in this process: one replica only".to_owned(),
        StoreChoice::Redis(address) => format!("in {address}; all replicas share it"),
    };
    let ledger = match &plan.fixed.ledger {
        Some(address) => format!("Keeps the ledger of turns in {address}."),
        None if plan.fixed.config.ledger.url.is_some() => "Keeps no ledger of turns.".to_owned(),
        None => "Keeps no ledger of turns: ledger.url names no database that all replicas share."
            .to_owned(),
    };
    let traces = match &plan.fixed.collector {
        Some(collector) => format!("Sends traces of turns to {collector}."),
        None => "Makes no traces: telemetry.otlp_endpoint names no collector.".to_owned(),
    };
    let operators = match Access::of(server, plan.fixed.admin_token.as_ref()) {
        Access::Token(_) => "callers that show the admin token",
        Access::Local => "anybody on this machine: there is no server.admin_token",
        Access::Closed => "nobody: there is no server.admin_token",
    };
    let is_unplaced = |organization: &str| {
        let of = |key: &&Arc<Key>| key.organization == organization && key.project.is_empty();
        keys.iter().filter(of).count() > 1
    };
    let unplaced: Vec<_> =
        organizations.iter().copied().filter(|organization| is_unplaced(organization)).collect();
    let projects = match unplaced.is_empty() {
        true => String::new(),
        false => format!(
            "Takes a rate limit in {} as one key's, until a second key meets it: key.project would \
             say which keys share their limits.\n",
            unplaced.join(", ")
        ),
    };
    format!(
        "Listens on {} for clients{} and on {} for probes and metrics.\n\
         Serves {clients}.\n\
         Takes operator's commands from {operators}.\n\
         Keys: {}, of these organizations: {}.\n\
         {projects}\
         Keeps bindings {store}.\n\
         {ledger}\n\
         {traces}\n\
         Holds up to {} connections of clients: the process may open {}{}.",
        server.listen,
        if server.tls.is_some() { ", through TLS," } else { "" },
        server.admin_listen,
        keys.len(),
        organizations.join(", "),
        descriptors.clients,
        files(descriptors.limit),
        match descriptors.limit > descriptors.before {
            true => format!(", raised from {}", descriptors.before),
            false => String::new(),
        },
    )
}

fn files(limit: usize) -> String {
    if limit == usize::MAX { "any number of files".into() } else { format!("{limit} files") }
}

/// Tries every kind of store operation that serving uses, under names that no replica uses. The
/// error says in one line what the store or its user lacks.
pub async fn reach_store(plan: &Plan) -> Result<(), String> {
    let StoreChoice::Redis(_) = &plan.fixed.store else { return Ok(()) };
    // The prefix keeps these names apart from those of replicas. The timeout is long, because a
    // slow store passes this check, too.
    let settings = store::StoreSettings {
        prefix: format!("{}:check", plan.fixed.config.store.prefix),
        timeout: Span(plan.fixed.config.store.timeout.0.max(STORE_START_TIMEOUT)),
        ..plan.fixed.config.store.clone()
    };
    let tasks = Tasks::new();
    let store = Store::in_redis(&settings, Arc::new(Metrics::new()), &tasks)?;
    // `Store::fault` knows of a Redis that never answers only after the attempt to connect has
    // ended.
    let is_ready = store.ready(STORE_START_TIMEOUT).await
        || store.fault().is_none() && store.ready(settings.timeout.0 * 2).await;
    let result = match is_ready {
        true => rehearse(&store).await.map_err(|why| format!("store.url: {why}")),
        false => Err(format!(
            "store.url: {}",
            store.fault().unwrap_or_else(|| "the store does not answer".into())
        )),
    };
    tasks.join(TASK_END_TIMEOUT).await;
    result
}

/// Tries every ledger operation that serving uses, and undoes each. The error is one line.
pub async fn reach_ledger(plan: &Plan) -> Result<(), String> {
    let Some(address) = &plan.fixed.ledger else { return Ok(()) };
    let DatabaseAddress::Sqlite(path) = address else {
        return rehearse_ledger(address, plan).await;
    };
    let is_new = !path.exists();
    let reached = rehearse_ledger(address, plan).await;
    if is_new {
        // Removes only the files that this check has made.
        for end in ["", "-wal", "-shm"] {
            let mut name = path.clone().into_os_string();
            name.push(end);
            let _ = std::fs::remove_file(name);
        }
    }
    let hint = "name a file in a folder that can be written, or write \"none:\"";
    reached.map_err(|why| format!("{why}: {hint}"))
}

async fn rehearse_ledger(address: &DatabaseAddress, plan: &Plan) -> Result<(), String> {
    let database = Database::at(address, plan.fixed.config.ledger.url.as_ref());
    let reaching = async {
        let mut connection = database.connect().await?;
        let rehearsed = connection.rehearse().await;
        connection.close().await;
        rehearsed
    };
    reaching.await.map_err(|failure| format!("ledger.url: {failure}"))
}

/// TTL of the stored values, in case the check is cut short.
const REHEARSAL: Duration = Duration::from_secs(10);

/// Tries one operation of each kind. An error names the commands that the operation needs.
async fn rehearse(store: &Store) -> Result<(), String> {
    let refused = |what: &'static str| {
        move |Unavailable(why): Unavailable| format!("{what} ({})", why.trim())
    };
    let claim = "claiming a binding does not work: it takes Redis 7 or newer, and a user who \
                 may write with SET NX GET";
    let get = "reading a binding does not work: it takes a user who may GET and PTTL";
    let script = "running a script does not work: it takes a user who may EVALSHA and EVAL, and in \
                  scripts GET, SET, PTTL, PEXPIRE, TIME, HGETALL, HSET and HDEL; `store.url` in \
                  the reference of options names all";
    let id = replica_name()?;
    let (first, second) = ("first", "second");
    let is_free = store
        .claim(Name::Binding(&id), first, REHEARSAL, &mut store.budget())
        .await
        .map_err(refused(claim))?
        .is_none();
    let entry = store.get(Name::Binding(&id), &mut store.budget()).await.map_err(refused(get))?;
    if !is_free || entry.is_none_or(|entry| entry.value != first) {
        return Err("what is stored cannot be read back".into());
    }
    let trail = "keeping a trail does not work: it takes a user who may LRANGE, and in scripts \
                 RPUSH, LTRIM and PEXPIRE";
    // A TTL this short deletes the stored values. The membership has no TTL, so extending it at the
    // end of this function gives it one.
    let life = Duration::from_millis(1);
    let (mut announced, mut subscribed) = (store.announcements(), store.resubscribed());
    let subscribing = timeout(STORE_START_TIMEOUT, subscribed.wait_for(|count| *count > 0));
    let is_subscribed = matches!(subscribing.await, Ok(Ok(_)));
    store
        .rebind(Name::Binding(&id), first, second, life, &mut store.budget())
        .await
        .map_err(refused(script))?;
    // A script goes on even if its Redis user may not publish, so only a missing announcement shows
    // that.
    let is_announced = matches!(timeout(STORE_START_TIMEOUT, announced.recv()).await, Ok(Ok(_)));
    store
        .append(&id, &[first.to_owned()], life, &mut store.budget())
        .await
        .map_err(refused(trail))?;
    store.list(&id, &mut store.budget()).await.map_err(refused(trail))?;
    let scan = "reading what is bound does not work: it takes a user who may SCAN";
    store
        .scan()
        .map_err(refused(scan))?
        .step()
        .await
        .unwrap_or(Ok(Vec::new()))
        .map_err(refused(scan))?;
    let report =
        MemberReport { replica: "check", fingerprint: "check", keys: "", ordinal: 0, life };
    store.exchange_membership(&report, &mut store.budget()).await.map_err(refused(script))?;
    store.extend(Name::Membership, "", life, &mut store.budget()).await.map_err(refused(script))?;
    // A user who lacks a right that is tried above never subscribes either, so this test comes
    // last.
    match (is_subscribed, is_announced) {
        (false, _) => Err("hearing of moved sessions does not work: it takes a user who may \
                           SUBSCRIBE to the channels of store.prefix"
            .into()),
        (true, false) => Err("telling of moved sessions does not work: it takes a user who may \
                              PUBLISH to the channels of store.prefix"
            .into()),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn description(text: &str) -> String {
        let key = |id: &str, organization: &str| {
            format!(
                "[[key]]\nid = {id:?}\nupstream = \"openai\"\norganization = {organization:?}\n\
                 secret = \"sk-canary\"\n"
            )
        };
        let keys = [key("b-1", "org-b"), key("a-1", "org-a"), key("a-2", "org-a")].concat();
        let plan = Config::parse(&format!("{text}\n{keys}")).unwrap().plan();
        let descriptors =
            Descriptors { limit: 20_000, before: 20_000, clients: 9_000, idle: 2_250, admin: 64 };
        describe(&plan.map_err(|faults| faults.join("; ")).unwrap(), descriptors)
    }

    #[test]
    fn check_tells_who_may_do_what_and_where() {
        assert_eq!(
            description(""),
            "Listens on 127.0.0.1:8080 for clients and on 127.0.0.1:9090 for probes and metrics.\n\
             Serves nobody: no client has a token.\n\
             Takes operator's commands from anybody on this machine: \
             there is no server.admin_token.\n\
             Keys: 3, of these organizations: org-a, org-b.\n\
             Takes a rate limit in org-a as one key's, until a second key meets it: \
             key.project would say which keys share their limits.\n\
             Keeps bindings in this process: one replica only.\n\
             Keeps the ledger of turns in the file warmkey.db.\n\
             Makes no traces: telemetry.otlp_endpoint names no collector.\n\
             Holds up to 9000 connections of clients: the process may open 20000 files."
        );
        let client = |id: &str| format!("[[client]]\nid = {id:?}\ntoken = \"canary-{id}\"\n");
        let shared = "[server]\nlisten = \"0.0.0.0:1\"\nadmin_listen = \"0.0.0.0:2\"\n\
                      secret = \"0123456789abcdef0123456789abcdef\"\n\
                      [store]\nurl = \"redis://u:canary@h\"\n";
        assert_eq!(
            description(&format!("{shared}{}{}", client("alice"), client("bob"))),
            "Listens on 0.0.0.0:1 for clients and on 0.0.0.0:2 for probes and metrics.\n\
             Serves 2 client tokens.\n\
             Takes operator's commands from nobody: there is no server.admin_token.\n\
             Keys: 3, of these organizations: org-a, org-b.\n\
             Takes a rate limit in org-a as one key's, until a second key meets it: \
             key.project would say which keys share their limits.\n\
             Keeps bindings in one Redis at h:6379; all replicas share it.\n\
             Keeps no ledger of turns: ledger.url names no database that all replicas share.\n\
             Makes no traces: telemetry.otlp_endpoint names no collector.\n\
             Holds up to 9000 connections of clients: the process may open 20000 files."
        );
        for (text, line) in [
            (client("alice"), "Serves one client token."),
            ("[ledger]\nurl = \"none:\"".into(), "Keeps no ledger of turns."),
            (
                "[ledger]\nurl = \"postgres://u:canary@h/d\"".into(),
                "Keeps the ledger of turns in PostgreSQL at h:5432, database d.",
            ),
            (
                "[telemetry]\notlp_endpoint = \"http://jaeger:4317\"".into(),
                "Sends traces of turns to http://jaeger:4317.",
            ),
            (
                format!("[server]\nopen = true\n{}", client("alice")),
                "Serves anybody, without a token.",
            ),
            (
                "[server]\nadmin_listen = \"0.0.0.0:2\"\nadmin_token = \"canary\"".into(),
                "Takes operator's commands from callers that show the admin token.",
            ),
        ] {
            let description = description(&text);
            assert!(
                description.lines().any(|one| one == line) && !description.contains("canary"),
                "{description}"
            );
        }
    }
}
