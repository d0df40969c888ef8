//! Tests of the open connections: their limits, and what is told of them.

use super::*;

#[test]
fn requests_of_all_connections_are_counted_together() {
    let metrics = Arc::new(Metrics::new());
    let all = Connections::new(ListenerName::Clients, 3, Arc::clone(&metrics));
    let [one, two] = [(); 2].map(|()| all.enter().unwrap());
    let held = [one.begin(), one.begin(), two.begin()];
    assert!(held.iter().all(|request| !request.is_too_many()));
    assert!(two.begin().is_too_many() && one.begin().is_too_many());
    drop(held);
    // A WebSocket's request is one for as long as its connection lives.
    two.begin().for_life();
    let [second, third] = [one.begin(), one.begin()];
    assert!(!third.is_too_many() && one.begin().is_too_many());
    drop(two);
    assert!(!one.begin().is_too_many());
    drop((second, third));
    assert_eq!(all.requests.load(Ordering::Relaxed), 0);
    let series = r#"warmkey_connections_refused_total{reason="requests"} 3"#;
    assert!(metrics.render().contains(series));
}

#[tokio::test(start_paused = true)]
async fn longest_silent_connection_gives_way() {
    let metrics = Arc::new(Metrics::new());
    let all = Connections::new(ListenerName::Clients, 3, Arc::clone(&metrics));
    let [one, two, three] = [(); 3].map(|()| all.enter().unwrap());
    // The first one is busy, and then the youngest of the silent ones.
    let request = one.begin();
    let four = all.enter().unwrap();
    assert_eq!(
        [&one, &two, &three, &four].map(|seat| seat.must_end()),
        [false, true, false, false]
    );
    drop(request);
    drop(two);
    let five = all.enter().unwrap();
    assert_eq!([&one, &three, &four].map(|seat| seat.must_end()), [false, true, false]);
    drop(three);
    for seat in [&one, &four, &five] {
        seat.begin().for_life();
    }
    assert!(all.enter().is_none(), "a request in flight is never ended");
    drop(four);
    assert!(all.enter().is_some());
    let page = metrics.render();
    for series in [
        r#"warmkey_connections_refused_total{reason="silent"} 2"#,
        r#"warmkey_connections_refused_total{reason="limit"} 1"#,
        r#"warmkey_connections{listener="clients"} 2"#,
        "warmkey_connections_limit 3",
    ] {
        assert!(page.contains(series), "{series} is not in\n{page}");
    }
}

/// A flood of one kind hides no other from the log.
#[tokio::test(start_paused = true)]
async fn reason_is_told_of_once_a_minute_beside_others() {
    let mut state = State::default();
    let reasons = [
        ConnectionRefusal::Silent,
        ConnectionRefusal::Limit,
        ConnectionRefusal::Descriptors,
        ConnectionRefusal::Requests,
    ];
    for _ in 0..2 {
        assert_eq!(reasons.map(|reason| state.is_due(reason)), [true; 4]);
        tokio::time::advance(TELL / 2).await;
        assert_eq!(reasons.map(|reason| state.is_due(reason)), [false; 4]);
        tokio::time::advance(TELL / 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn silent_websocket_gives_way_in_its_turn() {
    let all = Connections::new(ListenerName::Clients, 3, Arc::new(Metrics::new()));
    let [one, http, two] = [(); 3].map(|()| all.enter().unwrap());
    for seat in [&one, &two] {
        seat.begin().for_life();
    }
    let must_end = || [&one, &http, &two].map(|seat| seat.must_end());
    let request = http.begin();
    assert!(all.enter().is_none() && must_end() == [false; 3]);
    two.note_silence(true);
    drop(request);
    one.note_silence(true);
    two.note_silence(true);
    one.note_silence(false);
    let four = all.enter().unwrap();
    assert_eq!(must_end(), [false, false, true], "it is the longest silent one");
    assert_eq!(all.requests.load(Ordering::Relaxed), 1, "the new client may ask");
    drop(two);
    let five = all.enter().unwrap();
    assert!(http.must_end() && !one.must_end());
    drop((http, four, five));
    one.note_silence(true);
    assert_eq!(all.requests.load(Ordering::Relaxed), 1, "it holds an upstream's connection");
    drop(one);
    assert_eq!((all.requests.load(Ordering::Relaxed), all.lock().silent.len()), (0, 0));
}
