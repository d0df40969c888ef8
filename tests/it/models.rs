//! Tests the lists of models: in the client's form, from its upstreams, cached, and with only the
//! models that the client may ask for.

use serde_json::Value;

use crate::world::cable::Weather;
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::simulator::Key;
use crate::world::wire::{Answer, Request, ask};

const LIMITED: &str = "token-canary-limited";

/// Names with a slash or a colon, as SDKs and other clients spell them in a path.
const ODD: [(&str, &[&str]); 3] = [
    ("org/model", &["org/model", "org%2Fmodel", "org%2fmodel", "%6Frg%2Fmodel"]),
    ("ft:gpt-5:acme::abc", &["ft:gpt-5:acme::abc", "ft%3Agpt-5%3Aacme%3A%3Aabc"]),
    ("100% modèle", &["100%25%20mod%C3%A8le"]),
];

async fn cluster() -> Running {
    let mut keys = vec![Key::new("a-1", "org-a"), Key::new("b-1", "org-b")];
    keys[0].limits = "models = [\"gpt-5.4\", \"gpt-5.5\"]\n".into();
    keys[1].limits = "models = [\"gpt-5.5\", \"gpt-6-sol\"]\n".into();
    let clients = format!(
        "[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n\
         [[client]]\nid = \"bob\"\ntoken = {BOB:?}\norganizations = [\"org-b\"]\n\
         [[client]]\nid = \"limited\"\ntoken = {LIMITED:?}\nmodels = [\"gpt-5.5\", \"unknown\"]\n"
    );
    Cluster::new().keys(keys).clients(&clients).cabled().start().await
}

async fn asked(cluster: &Running, target: &str, token: &str) -> Answer {
    ask(cluster.address(), &Request::new("GET", target).bearer(token)).await
}

fn names(answer: &Answer, list: &str, name: &str) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    let entries = json[list].as_array().unwrap_or_else(|| panic!("{json}")).iter();
    entries.map(|entry| entry[name].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn list_has_what_the_client_may_ask_for() {
    let cluster = cluster().await;
    for base in ["", "/v1"] {
        let target = format!("{base}/models");
        for (token, expected) in [
            (ALICE, &["gpt-5.4", "gpt-5.5", "gpt-6-sol"][..]),
            (BOB, &["gpt-5.5", "gpt-6-sol"]),
            (LIMITED, &["gpt-5.5"]),
        ] {
            let answer = asked(&cluster, &target, token).await;
            let mut found = names(&answer, "data", "id");
            found.sort();
            assert_eq!(found, expected);
            assert_eq!(answer.json()["object"], "list");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert!(answer.header("x-warmkey-turn").is_some());
            let head = Request::new("HEAD", &target).bearer(token);
            let mut connection = crate::world::wire::Connection::open(cluster.address()).await;
            let head = connection.ask(&head).await.expect("an answer");
            let length = answer.body.len().to_string();
            assert_eq!((head.status, head.header("content-length")), (200, Some(&length[..])));
        }
        for (token, id, status) in [
            (ALICE, "gpt-5.4", 200),
            (BOB, "gpt-5.4", 404),
            (LIMITED, "gpt-5.4", 404),
            (LIMITED, "unknown", 404),
            (ALICE, "claude", 404),
        ] {
            let answer = asked(&cluster, &format!("{base}/models/{id}"), token).await;
            assert_eq!(answer.status, status, "{id}: {}", answer.text());
            let json = answer.json();
            if status == 200 {
                assert_eq!((&json["id"], &json["object"]), (&id.into(), &"model".into()));
            } else {
                assert_eq!(json["error"]["code"], "model_not_found", "{json}");
                assert_eq!(json["error"]["param"], "model", "{json}");
            }
        }
        for (target, token) in [(&target[..], None), (&target, Some("nobody's"))] {
            let request = Request::new("GET", target);
            let request = token.map_or(request.clone(), |token| request.bearer(token));
            let refused = ask(cluster.address(), &request).await;
            assert_eq!((refused.status, refused.code().as_str()), (401, "invalid_api_key"));
        }
    }
    // Each project was asked once, and no list is a turn.
    let mut probed: Vec<_> =
        cluster.upstream().probes().await.into_iter().map(|probe| probe.key).collect();
    probed.sort();
    assert_eq!(probed, ["a-1", "b-1"]);
    cluster.shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, 0.0).await;
    cluster.shows("warmkey_active_turns", 0.0).await;
}

/// The upstream's own answer is the judge of status and body.
#[tokio::test]
async fn model_is_shown_and_refused_as_by_its_upstream() {
    let key = Key::new("a-1", "org-a");
    let mut keys = vec![key.clone()];
    let names: Vec<_> = ODD.iter().map(|(name, _)| *name).chain(["gpt-5.4", "gpt-5.5"]).collect();
    keys[0].limits = format!("models = {names:?}\n");
    let clients = format!(
        "[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n\
         [[client]]\nid = \"limited\"\ntoken = {LIMITED:?}\nmodels = [\"gpt-5.5\", \"org/other\"]\n"
    );
    let cluster = Cluster::new().keys(keys).clients(&clients).start().await;
    let directly = async |target: &str| {
        let request = Request::new("GET", target).bearer(&key.secret());
        ask(cluster.upstream().address(), &request).await
    };
    let known = ODD.iter().flat_map(|(name, spelled)| spelled.iter().map(move |one| (*name, *one)));
    for (name, spelled) in known.chain([("gpt-5.4", "gpt-5.4")]) {
        for base in ["", "/v1"] {
            let target = format!("{base}/models/{spelled}");
            let (found, own) = (asked(&cluster, &target, ALICE).await, directly(&target).await);
            assert_eq!((own.status, own.json()["id"].as_str()), (200, Some(name)), "{target}");
            assert_eq!((found.status, found.text()), (own.status, own.text()), "{target}");
            assert_eq!(found.header("content-type"), own.header("content-type"));
        }
    }
    for unknown in ["gpt-0", "org%2Funknown", "org/unknown", "ft%3Agpt-5", "..", "org%252Fmodel"] {
        let target = format!("/v1/models/{unknown}");
        let (refused, own) = (asked(&cluster, &target, ALICE).await, directly(&target).await);
        assert_eq!((own.status, own.code().as_str()), (404, "model_not_found"), "{target}");
        assert_eq!((refused.status, refused.text()), (own.status, own.text()), "{target}");
        assert_eq!(refused.header("content-type"), own.header("content-type"));
    }
    // A model that the client may not use is refused with the words for a model that does not
    // exist.
    for (name, spelled) in [ODD[0], ODD[1]].map(|(name, spelled)| (name, spelled[1])) {
        let target = format!("/models/{spelled}");
        let (denied, mut own) = (asked(&cluster, &target, LIMITED).await, directly(&target).await);
        assert_eq!(own.status, 200, "it exists");
        own = directly("/models/nobody's").await;
        assert_eq!((denied.status, denied.text()), (404, own.text().replace("nobody's", name)));
    }
    assert_eq!(asked(&cluster, "/models/gpt-5.5", LIMITED).await.status, 200);
    // A path that cannot spell a model is no endpoint.
    for target in ["/models/a%2", "/models/%ff", "/models/a%0Ab"] {
        let refused = asked(&cluster, target, ALICE).await;
        assert_eq!((refused.status, refused.code().as_str()), (404, "unknown_url"), "{target}");
    }
}

#[tokio::test]
async fn codex_gets_its_own_list_with_its_version() {
    let cluster = cluster().await;
    let target = "/models?client_version=0.171.0";
    let answer = asked(&cluster, target, ALICE).await;
    assert_eq!(names(&answer, "models", "slug"), ["gpt-5.4", "gpt-5.5"]);
    let etag = answer.header("etag").expect("a version").to_owned();
    let json: Value = answer.json();
    assert!(json["models"][0]["truncation_policy"].is_object(), "all of each entry: {json}");
    let request = Request::new("GET", target).bearer(ALICE).header("if-none-match", &etag);
    let same = ask(cluster.address(), &request).await;
    assert_eq!((same.status, same.header("etag")), (304, Some(&etag[..])));
    let other = Request::new("GET", target).bearer(ALICE).header("if-none-match", "\"other\"");
    assert_eq!(ask(cluster.address(), &other).await.status, 200);
    let limited = asked(&cluster, target, LIMITED).await;
    assert_eq!(names(&limited, "models", "slug"), ["gpt-5.5"]);
}

#[tokio::test]
async fn list_outlives_its_upstream() {
    let cluster = cluster().await;
    let before = asked(&cluster, "/models", ALICE).await;
    cluster.cable().set(Weather::Refused);
    let after = asked(&cluster, "/models", ALICE).await;
    assert_eq!((after.status, after.body), (200, before.body));
    let codex = asked(&cluster, "/models?client_version=0.1", ALICE).await;
    assert_eq!((codex.status, codex.code().as_str()), (502, "upstream_unreachable"));
}
