//! Tests of the series that a replica's page shows.

use crate::metrics::*;

/// All series of a new replica: the name of a family and the values of each label. A histogram
/// stands here by its count.
const FROM_THE_START: &str = "
    turns_total transport=http,websocket \
      outcome=completed,incomplete,failed,upstream_error,cut,timed_out,client_left,refused,unserved
    turn_seconds_count transport=http,websocket
    overhead_seconds_count
    usage_missing_total
    credential_echoes_total
    malformed_session_signals_total
    bindings_total result=existing,created,inherited,spilled,rebound,degraded,none
    decisions_total decision=move,spill,wait,retry,probe,refuse \
      reason=suspected,rejected,incident,exhausted,limited,too_steep,overloaded,no_access,failed,\
             crowded,disabled,drained,removed,not_loaded,not_allowed,none_in_use,forgotten,stored,\
             unreachable,inexpressible
    cold_turns_total reason=first_turn,key_moved,domain_moved,expired,prefix_changed,\
                            model_changed,below_minimum,upstream
    cold_tokens_total reason=first_turn,key_moved,domain_moved,expired,prefix_changed,\
                             model_changed,below_minimum,upstream
    expected_turns_total
    expected_tokens_total
    keys_waiting
    ledger_up
    ledger_dropped_total
    traces_dropped_total
    unpriced_turns_total
    reloads_total
    reload_failures_total
    active_turns
    active_websockets
    store_up
    store_seconds_count operation=get,recall,put,claim,replace,extend,merge,roll,board,append,list
    store_failures_total reason=timeout,connection,authentication,readonly,out_of_memory,loading,\
                                denied,other
    lagging_rebinds_total
    connections listener=clients,admin
    connections_limit
    connections_refused_total reason=silent,limit,descriptors,requests
    refused_total reason=invalid_api_key,unknown_url,origin_not_allowed,websocket_not_supported,\
                         other
    refusals_slowed_total
    body_memory_bytes
    body_memory_limit_bytes
    log_lines_dropped_total
    task_restarts_total
";

/// The series of one configured key.
const OF_A_KEY: &str = "
    key_state key=a-1 state=ready,cooling,probing,disabled
    input_tokens_total key=a-1 cache=read,written,uncached
    output_tokens_total key=a-1
    cost_usd_total key=a-1
";

/// Writes out every combination of the labels' values.
fn series(families: &str) -> Vec<String> {
    let mut all = Vec::new();
    for line in families.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let mut sets = vec![String::new()];
        for (label, values) in words.map(|word| word.split_once('=').unwrap()) {
            let one = |set: &String, value| {
                let comma = if set.is_empty() { "" } else { "," };
                format!("{set}{comma}{label}=\"{value}\"")
            };
            let each = |set| values.split(',').map(move |value| one(set, value));
            sets = sets.iter().flat_map(each).collect();
        }
        let braced = |set: String| if set.is_empty() { set } else { format!("{{{set}}}") };
        all.extend(sets.into_iter().map(|set| format!("warmkey_{name}{}", braced(set))));
    }
    all.sort_unstable();
    all
}

/// The series on the page with their values, without `build_info`. A histogram is reduced to its
/// count.
fn shown(metrics: &Metrics) -> Vec<(String, String)> {
    let page = metrics.render();
    let is_shown = |line: &&str| {
        let is_part = line.contains("_seconds_bucket") || line.contains("_seconds_sum");
        !line.starts_with('#') && !line.starts_with("warmkey_build_info") && !is_part
    };
    let lines = page.lines().filter(is_shown).map(|line| line.rsplit_once(' ').unwrap());
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn names(metrics: &Metrics) -> Vec<String> {
    let mut names: Vec<_> = shown(metrics).into_iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

#[test]
fn page_shows_every_series_of_the_contract_at_zero_from_the_start() {
    let metrics = Metrics::new();
    assert_eq!(names(&metrics), series(FROM_THE_START));
    assert!(shown(&metrics).iter().all(|(_, value)| value == "0"), "{}", metrics.render());
    let build = concat!("warmkey_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n");
    assert!(metrics.render().contains(build), "{}", metrics.render());
}

#[test]
fn page_shows_a_key_from_its_first_state_until_it_is_removed() {
    let (metrics, all) = (Metrics::new(), [FROM_THE_START, OF_A_KEY].concat());
    metrics.key_state("a-1", KeyState::Ready);
    assert_eq!(names(&metrics), series(&all));
    metrics.key_removed("a-1");
    assert_eq!(names(&metrics), series(FROM_THE_START));
    metrics.key_state("a-1", KeyState::Ready);
    metrics.output_tokens("a-1", 7);
    metrics.key_removed("a-1");
    let served = "output_tokens_total key=a-1";
    assert_eq!(names(&metrics), series(&[FROM_THE_START, served].concat()), "counted tokens stay");
}

#[test]
fn page_shows_what_was_recorded() {
    let metrics = Metrics::new();
    metrics.turn_began();
    metrics.turn_ended(Transport::Http, Ending::ClientLeft, 0.2);
    metrics.input_tokens("a-1", Cache::Read, 1_024);
    metrics.key_state("a-1", KeyState::Ready);
    metrics.bound(BindingResult::Created);
    metrics.cold_turn(ColdReason::FirstTurn, 0);
    metrics.cold_turn(ColdReason::Expired, 9_000);
    metrics.expected(9_128);
    metrics.decided(Decision::Move, Reason::TooSteep);
    metrics.store_took(Operation::Get, 0.000_2);
    metrics.store_failed(StoreFailure::OutOfMemory);
    metrics.rebinds_lag(3);
    let page = metrics.render();
    for line in [
        r#"warmkey_turns_total{transport="http",outcome="client_left"} 1"#,
        r#"warmkey_turn_seconds_bucket{le="0.25",transport="http"} 1"#,
        r#"warmkey_turn_seconds_count{transport="http"} 1"#,
        r#"warmkey_input_tokens_total{key="a-1",cache="read"} 1024"#,
        r#"warmkey_key_state{key="a-1",state="ready"} 1"#,
        r#"warmkey_key_state{key="a-1",state="disabled"} 0"#,
        r#"warmkey_bindings_total{result="created"} 1"#,
        r#"warmkey_cold_turns_total{reason="first_turn"} 1"#,
        r#"warmkey_cold_tokens_total{reason="first_turn"} 0"#,
        r#"warmkey_cold_turns_total{reason="expired"} 1"#,
        r#"warmkey_cold_tokens_total{reason="expired"} 9000"#,
        "warmkey_expected_turns_total 1",
        "warmkey_expected_tokens_total 9128",
        r#"warmkey_decisions_total{decision="move",reason="too_steep"} 1"#,
        r#"warmkey_store_seconds_count{operation="get"} 1"#,
        r#"warmkey_store_failures_total{reason="out_of_memory"} 1"#,
        "warmkey_lagging_rebinds_total 3",
        "warmkey_credential_echoes_total 0",
        "warmkey_active_turns 0",
        "warmkey_active_websockets 0",
        "warmkey_overhead_seconds_count 0",
        "# TYPE warmkey_turns counter",
        "# UNIT warmkey_turn_seconds seconds",
        "# TYPE warmkey_store_seconds histogram",
        "# TYPE warmkey_key_state gauge",
        "# TYPE warmkey_build info",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}
