//! Tests of a scraped page: names, labels and counts.

use super::*;

mod page;

/// Whether the page shows `series`, a name with labels and a value.
fn has(metrics: &Metrics, series: &str) -> bool {
    metrics.render().lines().any(|line| line == series)
}

#[test]
fn metric_is_named_as_dashboards_name_it() {
    let metrics = Metrics::new();
    metrics.output_tokens("a-1", 7);
    metrics.input_tokens("a-1", Cache::Written, 5);
    metrics.input_tokens("a-1", Cache::Uncached, 3);
    metrics.usage_missing();
    metrics.credential_leaked();
    metrics.malformed_signals(2);
    metrics.decided(Decision::Spill, Reason::TooSteep);
    metrics.keys_waiting(4);
    metrics.reloaded();
    metrics.reload_failed();
    metrics.reload_failed();
    metrics.store_up(true);
    metrics.overhead(0.002);
    for series in [
        r#"warmkey_output_tokens_total{key="a-1"} 7"#,
        r#"warmkey_input_tokens_total{key="a-1",cache="written"} 5"#,
        r#"warmkey_input_tokens_total{key="a-1",cache="uncached"} 3"#,
        "warmkey_usage_missing_total 1",
        "warmkey_credential_echoes_total 1",
        "warmkey_malformed_session_signals_total 2",
        r#"warmkey_decisions_total{decision="spill",reason="too_steep"} 1"#,
        "warmkey_keys_waiting 4",
        "warmkey_reloads_total 1",
        "warmkey_reload_failures_total 2",
        "warmkey_store_up 1",
        r#"warmkey_overhead_seconds_bucket{le="0.001"} 0"#,
        r#"warmkey_overhead_seconds_bucket{le="0.0025"} 1"#,
    ] {
        assert!(has(&metrics, series), "{series} is not in\n{}", metrics.render());
    }
    metrics.store_up(false);
    assert!(has(&metrics, "warmkey_store_up 0"));
}

#[test]
fn key_has_one_state_and_none_once_it_is_removed() {
    let metrics = Metrics::new();
    let of = |key: &str| {
        let page = metrics.render();
        let start = format!("warmkey_key_state{{key=\"{key}\",state=\"");
        let mut states: Vec<_> =
            page.lines().filter_map(|line| line.strip_prefix(&start)).map(str::to_owned).collect();
        states.sort();
        states
    };
    metrics.key_state("a-1", KeyState::Ready);
    metrics.key_state("a-2", KeyState::Probing);
    metrics.key_state("a-1", KeyState::Cooling);
    assert_eq!(of("a-1"), ["cooling\"} 1", "disabled\"} 0", "probing\"} 0", "ready\"} 0"]);
    metrics.key_removed("a-1");
    assert_eq!(of("a-1"), Vec::<String>::new());
    assert_eq!(
        of("a-2"),
        ["cooling\"} 0", "disabled\"} 0", "probing\"} 1", "ready\"} 0"],
        "another key's stay"
    );
}

#[test]
fn turn_is_counted_once_and_a_handshake_not_at_all() {
    let metrics = Metrics::new();
    for _ in 0..3 {
        metrics.turn_began();
    }
    metrics.turn_ended(Transport::Websocket, Ending::Completed, 0.3);
    assert!(has(&metrics, "warmkey_active_turns 2"));
    metrics.turn_void();
    assert!(has(&metrics, "warmkey_active_turns 1"));
    assert!(has(&metrics, r#"warmkey_turns_total{transport="websocket",outcome="completed"} 1"#));
    assert!(has(&metrics, r#"warmkey_turn_seconds_bucket{le="0.25",transport="websocket"} 0"#));
    assert!(has(&metrics, r#"warmkey_turn_seconds_bucket{le="0.5",transport="websocket"} 1"#));
    metrics.websocket_opened();
    metrics.websocket_opened();
    metrics.websocket_closed();
    assert!(has(&metrics, "warmkey_active_websockets 1"));
}

/// Charts and alerts are written with these words.
#[test]
fn label_has_the_values_that_others_rely_on() {
    macro_rules! words {
        ($label:ident) => {
            $label::ALL.iter().map(|value| value.name()).collect::<Vec<_>>().join(" ")
        };
    }
    assert_eq!(words!(Transport), "http websocket");
    assert_eq!(
        words!(Ending),
        "completed incomplete failed upstream_error cut timed_out client_left refused unserved"
    );
    assert_eq!(words!(BindingResult), "existing created inherited spilled rebound degraded none");
    assert_eq!(
        words!(ColdReason),
        "first_turn key_moved domain_moved expired prefix_changed model_changed below_minimum upstream"
    );
    assert_eq!(words!(Cache), "read written uncached");
    assert_eq!(words!(KeyState), "ready cooling probing disabled");
    assert_eq!(words!(Decision), "move spill wait retry probe refuse");
    assert_eq!(
        words!(StoreFailure),
        "timeout connection authentication readonly out_of_memory loading denied other"
    );
}
