//! Number 6: an upstream can read nothing in a request but what the rules have read. Some servers
//! look for the method, the address or a field in a header or in the query. Some read the first of
//! duplicate fields.

use super::{BODY, turn, two};
use crate::world::cluster::ALICE;
use crate::world::recorder::{Recorder, completed};
use crate::world::socket::{Upstream, session};
use crate::world::wire::{Request, ask};

#[tokio::test]
async fn header_that_names_another_method_or_address_never_passes() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    let names = [
        "x-http-method",
        "X-HTTP-Method-Override",
        "x-method-override",
        "x_http_method_override",
        "x-original-method",
        "x-original-url",
        "x-original-uri",
        "x_original_url",
        "x-rewrite-url",
        "x-override-url",
    ];
    let all = |request: Request| {
        names.iter().fold(request, |request, name| request.header(name, "smuggled"))
    };
    for request in [turn(BODY), turn(BODY).target("/v1/responses/compact")] {
        let request = all(request).header("x-original-idea", "kept");
        assert_eq!(ask(cluster.address(), &request).await.status, 200);
    }
    let stored = Request::new("GET", "/v1/responses/resp_1").bearer(ALICE);
    assert_eq!(ask(cluster.address(), &all(stored)).await.status, 200);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 3);
    for seen in &seen {
        let is_smuggled = seen.headers.iter().any(|(_, value)| value.contains("smuggled"));
        assert!(!is_smuggled, "{} {:?}", seen.line, seen.headers);
    }
    assert_eq!(seen[0].header("x-original-idea"), Some("kept"), "a new client's header passes");
}

#[tokio::test]
async fn query_that_names_a_method_or_a_field_of_the_body_never_passes() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200, "makes resp_1");
    for query in [
        "_method=DELETE",
        "%5Fmethod=DELETE",
        "a=b&_METHOD=DELETE",
        "x-http-method-override=DELETE",
        "previous_response_id=resp_2",
        "previous%5fresponse%5Fid=resp_2",
        "input[0][type]=item_reference",
        "conversation.id=conv_1",
        "a;model=gpt-5.4",
    ] {
        for request in [
            turn(BODY).target(&format!("/v1/responses?{query}")),
            Request::new("GET", &format!("/v1/responses/resp_1?{query}")).bearer(ALICE),
        ] {
            let told = ask(cluster.address(), &request).await;
            let expected = (400, "invalid_request");
            assert_eq!((told.status, told.code().as_str()), expected, "{query}: {}", told.text());
        }
    }
    assert_eq!(upstream.seen().len(), 1);
    let target = "/v1/responses/resp_1?include[]=x&starting_after=7&stream=true";
    let known = Request::new("GET", target).bearer(ALICE);
    assert_eq!(ask(cluster.address(), &known).await.status, 200);
    let line = &upstream.seen()[1].line;
    assert!(line.contains("?include[]=x&starting_after=7&stream=true"), "{line}");
}

/// Fields of a turn that name another client's content to a reader of the first duplicate, or of
/// the last one. With each goes the error that the client receives.
const TWICE: [(&str, u16, &str); 6] = [
    (r#""input":[{"type":"item_reference","id":"msg_1"}],"input":"hello""#, 404, "item_not_found"),
    (r#""inp\u0075t":[{"id":"msg_1"}],"input":[]"#, 404, "item_not_found"),
    (r#""input":[],"input":[{"type":"item_reference","id":"msg_1"}]"#, 404, "item_not_found"),
    (r#""previous_response_id":"resp_2","previous_response_id":null"#, 400, "invalid_request"),
    (r#""conversation":"conv_1","conversation":null"#, 400, "invalid_request"),
    (r#""conversation":{"id":"conv_1","id":null}"#, 400, "invalid_request"),
];

#[tokio::test]
async fn duplicate_field_never_names_anothers_content() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    for (fields, status, code) in TWICE {
        let body = format!(r#"{{"model":"gpt-5.4",{fields}}}"#);
        let told = ask(cluster.address(), &turn(&body)).await;
        let case = format!("{fields}: {}", told.text());
        assert_eq!((told.status, told.code().as_str()), (status, code), "{case}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn duplicate_field_never_names_anothers_content_on_a_socket() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    for (fields, status, code) in TWICE {
        client.send(&format!(r#"{{"type":"response.create","model":"gpt-5.4",{fields}}}"#)).await;
        let told = client.json().await;
        let found = (told["status"].as_u64(), told["error"]["code"].as_str());
        assert_eq!(found, (Some(status.into()), Some(code)), "{fields}: {told}");
    }
    let last = r#"{"type":"response.create","model":"gpt-5.4","input":"hello"}"#;
    client.send(last).await;
    assert_eq!(there.text().await, last, "the upstream got nothing before");
}
