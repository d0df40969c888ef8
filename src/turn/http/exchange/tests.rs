//! Tests of the answer to every turn.

use super::*;

fn answered(id: Option<&'static str>) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::from(String::new()));
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, HeaderValue::from_static(id));
    }
    response
}

#[tokio::test]
async fn turn_that_panics_is_answered() {
    let id = TurnId::random();
    let response = catch_panic(id, async { panic!("a turn of a test") }).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[TURN]),
        (500, &id.to_string().parse().unwrap())
    );
}

#[tokio::test]
async fn answer_has_its_upstreams_id_or_else_its_own() {
    let id = TurnId::random();
    for said in [Some("req_1"), None] {
        let response = catch_panic(id, async { answered(said) }).await;
        let own = id.to_string();
        let told =
            [TURN, REQUEST_ID].map(|name| response.headers()[name].to_str().unwrap().to_owned());
        assert_eq!(told, [own.clone(), said.map_or(own, str::to_owned)]);
    }
}
