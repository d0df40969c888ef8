//! Tests of which probes a replica sends, and what it concludes from their answers.

use super::*;
use crate::health::conditions::Fitness;
use crate::key::table::Table;
use crate::peers::heartbeat::Heartbeat;
use crate::store::memory::Memory;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn exhausted_organization_is_tried_by_one_turn_every_ten_minutes() {
    let memory = Arc::new(Memory::new(100));
    let tasks = Tasks::default();
    let replicas: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let metrics = Arc::new(Metrics::new());
            let registry = Arc::new(Registry::new(
                Table::sketch("a o 1 sk-a, b o 1 sk-b"),
                Arc::clone(&metrics),
            ));
            let store = Arc::new(Store::in_memory(Arc::clone(&memory), Arc::clone(&metrics)));
            let (topic, replicas) = (Arc::clone(&registry) as _, Arc::clone(&registry.replicas));
            let heartbeat = Heartbeat::new(Arc::clone(&store), topic, replicas, name.into());
            tasks.spawn(async move { Arc::new(heartbeat).run().await });
            let prober = Prober {
                store,
                registry: Arc::clone(&registry),
                metrics,
                tasks: tasks.clone(),
                name: name.into(),
            };
            tasks.spawn(Arc::new(prober).keep_probing());
            registry
        })
        .collect();
    let key = replicas[0].loaded().table.keys()[0].clone();
    let tickets =
        || replicas.iter().filter(|registry| registry.conditions.take_ticket(&key)).count();
    let all =
        |is: fn(Fitness) -> bool| replicas.iter().all(|registry| is(registry.fitness(&key, "")));
    replicas[0].condemn(&key, Ailment::Exhausted(Scope::Organization));
    sleep(Duration::from_secs(590)).await;
    assert_eq!(tickets(), 0);
    for _ in 0..2 {
        sleep(Duration::from_secs(20)).await;
        assert_eq!(tickets(), 1, "one replica asks for all, and one turn of it");
        assert!(
            all(|fitness| matches!(fitness, Fitness::Dead(_))),
            "for the others it is out of use meanwhile"
        );
        // The turn was refused again.
        replicas[0].condemn(&key, Ailment::Exhausted(Scope::Organization));
        sleep(Duration::from_secs(580)).await;
    }
    sleep(Duration::from_secs(20)).await;
    let served = replicas
        .iter()
        .find(|registry| registry.conditions.take_ticket(&key))
        .expect("one may try");
    served.has_served(&key, Instant::now());
    sleep(Duration::from_secs(1)).await;
    assert!(all(|fitness| fitness == Fitness::Ready), "all learn that it is back");
    assert!(
        replicas.iter().all(|registry| registry.conditions.ramp(&key) < 0.1),
        "and come to it little by little"
    );
}

/// The requests that an upstream received, in their order.
type Received = Arc<Mutex<Vec<String>>>;

/// An upstream that answers each request with a status and a code, chosen by the secret in the
/// request. Status 0: no answer.
async fn upstream(
    script: impl Fn(&str) -> (u16, &'static str) + Send + 'static,
) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, received) = (listener.local_addr().unwrap(), Received::default());
    let receiving = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut head).await.is_ok_and(|count| count > 0)
            {}
            let head = String::from_utf8(head).unwrap();
            let secret = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
            let (status, code) = script(secret.expect("a credential"));
            receiving.lock().unwrap().push(head);
            // A code that begins like a page or a body is sent as the body.
            let body = match code.starts_with(['<', '{']) {
                true => code.to_owned(),
                false => format!(r#"{{"error":{{"code":"{code}"}}}}"#),
            };
            let head = format!(
                "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            if status > 0 {
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
        }
    });
    (format!("http://{address}/v1"), received)
}

/// A replica whose keys, each `id organization`, are served at `url`.
fn prober(url: &str, keys: &[(&str, &str)], memory: &Arc<Memory>) -> (Prober, Arc<Registry>) {
    let upstream =
        serde_json::from_value(serde_json::json!({ "name": "u", "base_url": url })).unwrap();
    let key = |(id, organization): &(&str, &str)| {
        serde_json::from_value(serde_json::json!({
            "id": id, "upstream": "u", "organization": organization, "secret": format!("sk-{id}"),
        }))
        .unwrap()
    };
    let table = Table::new(&[upstream], &keys.iter().map(key).collect::<Vec<_>>()).unwrap();
    let metrics = Arc::new(Metrics::new());
    let registry = Arc::new(Registry::new(table, Arc::clone(&metrics)));
    let store = Arc::new(Store::in_memory(Arc::clone(memory), Arc::clone(&metrics)));
    let name = format!("{:p}", Arc::as_ptr(&registry));
    (
        Prober { store, registry: Arc::clone(&registry), metrics, tasks: Tasks::default(), name },
        registry,
    )
}

const PAGE: &str = "<html><h1>Access denied</h1></html>";
const LIST: &str = r#"{"object":"list","data":[]}"#;

#[tokio::test]
async fn verdict_on_a_key_follows_from_its_upstreams_answer() {
    use Condition::{Recovering, Rejected, Suspected};
    for (status, code, expected) in [
        (200, LIST, Some(Recovering)),
        // On these answers, the upstream has accepted the key.
        (403, "unsupported_country_region_territory", Some(Recovering)),
        (429, "insufficient_quota", Some(Recovering)),
        (401, "invalid_api_key", Some(Rejected)),
        // If an answer needs no check of a credential, it says nothing: the condition stays.
        (200, "<html>Sign in to this network</html>", None),
        (200, "{}", None),
        (204, "", None),
        (206, PAGE, None),
        (301, "", None),
        (302, PAGE, None),
        (400, "", None),
        (400, "invalid_request_error", None),
        (403, PAGE, None),
        (403, "", None),
        (404, "", None),
        (404, "model_not_found", None),
        (405, PAGE, None),
        (418, PAGE, None),
        (429, PAGE, None),
        (500, "", None),
        (503, "server_is_overloaded", None),
        (0, "", None),
    ] {
        for before in [Suspected, Rejected] {
            let (url, received) = upstream(move |_| (status, code)).await;
            let (prober, registry) =
                prober(&url, &[("a", "o"), ("b", "o")], &Arc::new(Memory::new(9)));
            let keys = registry.loaded();
            let [key, other] = keys.table.keys() else { panic!("two keys") };
            let subject = Subject::of(key, Scope::Key);
            match before {
                Suspected => registry.observe(key, Ailment::Rejected(Scope::Key)),
                _ => registry.condemn(key, Ailment::Rejected(Scope::Key)),
            }
            prober.ask(subject, before, Duration::from_secs(60)).await;
            let known = [Suspected, Rejected, Recovering]
                .into_iter()
                .filter(|one| registry.conditions.is(subject, *one));
            assert_eq!(
                known.collect::<Vec<_>>(),
                [expected.unwrap_or(before)],
                "{before:?}, answered {status} {code}"
            );
            assert!(registry.conditions.of(other).is_empty(), "another key is not concerned");
            let received = received.lock().unwrap();
            let [question] = &received[..] else { panic!("one question: {received:?}") };
            assert!(question.starts_with("GET /v1/models HTTP/1.1\r\n"), "{question}");
        }
    }
}

/// An edge in front of the upstream refuses without checking the credential.
#[tokio::test]
async fn key_is_accepted_by_its_upstream_and_by_no_edge() {
    const SCOPE: &str = r#"{"error":{"message":"Missing scopes: api.model.read","code":null,"type":"invalid_request_error"}}"#;
    let refused = Acceptance::Refused(Scope::Key);
    for (status, answer, expected) in [
        (200, LIST, Acceptance::Accepted),
        (200, PAGE, Acceptance::Unknown),
        (401, SCOPE, Acceptance::Accepted),
        (403, "unsupported_country_region_territory", Acceptance::Accepted),
        (429, "insufficient_quota", Acceptance::Accepted),
        (401, "invalid_api_key", refused),
        (403, PAGE, Acceptance::Unknown),
        (429, PAGE, Acceptance::Unknown),
        (403, r#"{"error":{"message":"no"}}"#, Acceptance::Unknown),
        (403, r#"{"detail":"Forbidden"}"#, Acceptance::Unknown),
        (404, "", Acceptance::Unknown),
        (503, "", Acceptance::Unknown),
        (0, "", Acceptance::Unknown),
    ] {
        let (url, _) = upstream(move |_| (status, answer)).await;
        let (_, registry) = prober(&url, &[("a", "o")], &Arc::new(Memory::new(9)));
        let found = ask_about(&registry.loaded().table.keys()[0]).await;
        assert_eq!(found, expected, "{status} {answer}");
    }
}

/// A probe asks for no coding. If its answer comes in a coding that the gateway cannot read, the
/// answer decides nothing.
#[tokio::test]
async fn probe_in_an_unreadable_coding_decides_nothing() {
    let list = LIST.as_bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, list).unwrap();
    let (gzip, refused) = (gzip.finish().unwrap(), &br#"{"error":{"code":"invalid_api_key"}}"#[..]);
    for (status, coding, body, expected) in [
        (200, "identity", list, Acceptance::Accepted),
        (200, "gzip", &gzip[..], Acceptance::Accepted),
        (200, "gzip", list, Acceptance::Unknown),
        (200, "br", list, Acceptance::Unknown),
        (401, "identity", refused, Acceptance::Refused(Scope::Key)),
        (401, "br", refused, Acceptance::Unknown),
        (401, "gzip, br", refused, Acceptance::Unknown),
        (403, "x-unknown", refused, Acceptance::Unknown),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-encoding: {coding}\r\ncontent-length: {length}\r\n\r\n"
        );
        let answer = [head.as_bytes(), body].concat();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
            stream.write_all(&answer).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        let (_, registry) = prober(&url, &[("a", "o")], &Arc::new(Memory::new(9)));
        let found = ask_about(&registry.loaded().table.keys()[0]).await;
        assert_eq!(found, expected, "{status} {coding}");
        assert!(asked.await.unwrap().contains("accept-encoding: identity\r\n"));
    }
}

/// The keys of a refused organization are asked one by one, because each may be refused for itself.
#[tokio::test]
async fn verdict_on_an_organization_is_not_that_on_its_keys() {
    const KEYS: [(&str, &str); 5] = [("a", "o"), ("b", "o"), ("c", "o"), ("d", "o"), ("e", "p")];
    let (own, all) = ((401, "invalid_api_key"), (401, "account_deactivated"));
    for (answers, asked, is_refused, refused) in [
        ([all; 4], 1, true, 0),
        ([own, all, all, all], 2, true, 1),
        ([own, (200, LIST), all, all], 2, false, 1),
        ([(200, LIST); 4], 1, false, 0),
        ([(500, ""); 4], 1, true, 0),
        ([(403, PAGE); 4], 1, true, 0),
        // Asking three keys is enough.
        ([own; 4], 3, false, 3),
    ] {
        let (url, received) =
            upstream(move |secret| answers[usize::from(secret.as_bytes()[3] - b'a')]).await;
        let (prober, registry) = prober(&url, &KEYS, &Arc::new(Memory::new(9)));
        let loaded = registry.loaded();
        let keys = loaded.table.keys();
        let organization = Subject::of(&keys[0], Scope::Organization);
        registry.condemn(&keys[0], Ailment::Rejected(Scope::Organization));
        prober.ask(organization, Condition::Rejected, Duration::from_secs(60)).await;
        let secrets: Vec<_> = received
            .lock()
            .unwrap()
            .iter()
            .map(|head| head[head.find("sk-").unwrap()..].chars().nth(3))
            .collect();
        assert_eq!(
            secrets,
            ['a', 'b', 'c'][..asked].iter().copied().map(Some).collect::<Vec<_>>(),
            "{answers:?}"
        );
        assert_eq!(
            registry.conditions.is(organization, Condition::Rejected),
            is_refused,
            "{answers:?}"
        );
        let is_refused = |key: &&Arc<Key>| {
            registry.conditions.is(Subject::of(key, Scope::Key), Condition::Rejected)
        };
        assert_eq!(keys.iter().filter(is_refused).count(), refused, "{answers:?}");
        assert!(registry.conditions.of(&keys[4]).is_empty(), "another organization's");
    }
}

/// Every replica ends its own suspicion. About a key that is known to be refused, one replica asks
/// for all.
#[tokio::test]
async fn question_about_a_refused_key_is_asked_by_one_replica() {
    let memory = Arc::new(Memory::new(9));
    let (url, received) = upstream(|_| (401, "invalid_api_key")).await;
    let replicas = [(); 3].map(|()| prober(&url, &[("a", "o")], &memory));
    for (condition, expected) in
        [(Condition::Suspected, 3), (Condition::Rejected, 4), (Condition::Rejected, 4)]
    {
        for (prober, registry) in &replicas {
            let subject = Subject::of(&registry.loaded().table.keys()[0], Scope::Key);
            prober.ask(subject, condition, Duration::from_secs(60)).await;
        }
        assert_eq!(received.lock().unwrap().len(), expected, "{condition:?}");
    }
}
