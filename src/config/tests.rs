//! Tests of options, one by one: accepted values, refused values, and the exact errors.

use super::*;
use crate::wire::endpoint::Endpoint;
const KEY: &str =
    "[[key]]\nid = \"a-1\"\nupstream = \"openai\"\norganization = \"org-a\"\nsecret = \"sk-1\"\n";

/// All faults of `text`, whether found by parsing or by planning.
fn fault(text: &str) -> Option<String> {
    match Config::parse(text) {
        Ok(config) => config.plan().err().map(|faults| faults.join("\n")),
        Err(fault) => Some(fault),
    }
}

#[test]
fn configuration_of_a_laptop_is_one_key() {
    let plan = Config::parse(KEY).unwrap().plan().map_err(|faults| faults.join("; ")).unwrap();
    assert!(matches!(plan.fixed.store, StoreChoice::Memory));
    let [key] = plan.table.keys() else { panic!("one key: {:?}", plan.table.keys()) };
    assert_eq!(
        key.upstream.host.url(Endpoint::CreateResponse, None).as_str(),
        "https://api.openai.com/v1/responses"
    );
    assert_eq!(key.upstream.host.models(None).as_str(), "https://api.openai.com/v1/models");
    assert!(key.upstream.speaks_websocket && key.weight == 1);
    assert!(plan.clients.is_empty());
}

/// Options behind a bare `#` in the reference are real: uncommented, they are accepted.
#[test]
fn options_of_the_reference_exist() {
    let uncommented = |line: &str| {
        line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned()
    };
    let text: String = DEFAULT.lines().map(|line| uncommented(line) + "\n").collect();
    let parsed = Config::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!((parsed.upstream.len(), parsed.key.len(), parsed.client.len()), (1, 1, 1));
    assert!(parsed.hop.secret.is_some() && parsed.server.secret.is_some());
}

#[test]
fn keys_without_any_weight_are_refused() {
    let weightless = KEY.replace("id", "weight = 0\nid");
    let other = KEY.replace("a-1", "a-2");
    let plan = |text: &str| {
        Config::parse(text).unwrap().plan().map(|_| ()).map_err(|faults| faults.join("; "))
    };
    assert_eq!(plan(&weightless), Err("key: all have weight 0: none takes a new session".into()));
    assert_eq!(
        plan(&format!("{weightless}{other}")),
        Ok(()),
        "one that is being emptied stands beside another"
    );
}

#[test]
fn upstream_has_time_to_answer() {
    for option in ["connect_timeout", "first_byte_timeout", "idle_timeout"] {
        let text = format!(
            "[[upstream]]\nname = \"openai\"\nbase_url = \"http://h\"\n{option} = \"0s\"\n{KEY}"
        );
        let faults = Config::parse(&text).unwrap().plan().err().expect(option);
        assert_eq!(faults, [format!("upstream openai: {option}: must be longer than nothing")]);
    }
}

#[test]
fn fault_names_its_option_and_no_secret() {
    for (text, expected) in [
        ("[server]\nlisten_on = \"x\"", "listen_on"),
        ("[telemetry]\notlp_address = \"http://h:1\"", "otlp_address"),
        ("[server]\ndrain = \"soon\"", "no span of time"),
        ("[server]\nmax_body = \"64\"", "no size"),
        ("[server]\nsecret = { end = \"X\" }", "a secret is a string"),
        // An error does not repeat a value of the wrong kind: it may be a secret without its
        // quotes.
        ("[server]\nsecret = \"sk-canary", "line 7, column "),
        ("[server]\nsecret = sk-canary", "line 7, column "),
        ("[server]\nsecret = 4242", "server.secret: a secret is"),
        ("[server]\nsecret = 42.42", "server.secret: a secret is"),
        ("[server]\nsecret = -4242", "server.secret: a secret is"),
        ("[server]\nsecret = 42424242424242424242", "line 7, column "),
        ("[server]\nsecret = 0x42424242424242424242424242424242424242", "line 7, column "),
        ("[server]\nsecret = true", "server.secret: a secret is"),
        ("[server]\nsecret = [\"sk-canary\"]", "server.secret: a secret is"),
        ("[server]\nsecret = { env = { name = \"sk-canary\" } }", "server.secret"),
        ("[[client]]\nid = \"sk-canary\"\ntoken = 4242", "client[0].token: a secret is"),
        ("[[client]]\nmodels = \"sk-canary\"", "client[0].models: must be"),
        ("[[client]]\n\"\\u0000\"\"sk-canary\"", "line 7, column "),
        ("[store]\nurl = \"a\"\nurl = \"sk-canary\"", "line 8, column "),
        ("[hop]\nsecret = \"\"\"\nsk-canary", "line "),
        ("[[upstream]]\nbase_url = \"x\"", "name"),
    ] {
        let fault = Config::parse(&format!("{KEY}{text}")).expect_err(text);
        assert!(fault.contains(expected) && !fault.contains('\n'), "{text}: {fault}");
        assert!(!fault.contains("canary") && !fault.contains("42"), "{text}: {fault}");
    }
    for (text, expected) in [
        ("[server]\nsecret = \"sk-canary\"", "server.secret: has 9 bytes"),
        ("[server]\nopen = true\nlisten = \"0.0.0.0:8080\"", "server.open"),
        (
            "[store]\nurl = \"redis://h:1\"\n[ledger]\nurl = \"sqlite:w.db\"\n\
             [server]\nsecret = \"0123456789abcdef0123456789abcdef\"",
            "SQLite",
        ),
        ("[store]\nurl = \"postgres://u:sk-canary@h\"", "store.url"),
        ("[store]\nurl = \"redis://u:sk-canary@h:port\"", "store.url"),
        ("[store]\nurl = \"redis-sentinel://u:sk-canary@a,b\"", "store.url"),
        ("[store]\nurl = \"redis-cluster://u:sk-canary@a,b/1\"", "store.url"),
        (
            "[store]\nurl = \"rediss://u:sk-canary@h\"\nca_file = \"/nowhere/ca.pem\"",
            "store.ca_file",
        ),
        (
            "[server]\nadmin_token = \"canary\"\n[[client]]\nid = \"alice\"\ntoken = \"canary\"",
            "server.admin_token: is a client's token too",
        ),
        ("[server]\nadmin_token = \"\"", "server.admin_token: "),
        (KEY, "two have the id a-1"),
        ("[server]\nmax_body = \"0B\"", "server.max_body"),
        ("[server]\nreplay_total = \"0MiB\"", "server.replay_total"),
        ("[binding]\nmemory = 0", "binding.memory"),
        (
            "[[client]]\nid = \"alice\"\ntoken = \"canary\"\n\
             organizations = [\"org-b\", \"org-c\"]",
            "client alice: organizations",
        ),
    ] {
        let faults =
            Config::parse(&format!("{text}\n{KEY}")).unwrap().plan().err().expect(text).join("; ");
        assert!(faults.contains(expected) && !faults.contains("canary"), "{faults}");
    }
}

/// The reference of options is also the source of the defaults: defaults in code must say the same.
#[test]
fn reference_tells_the_defaults() {
    let section = |options: &str| format!("{KEY}[[upstream]]\nname = \"openai\"\n{options}");
    let upstream = |text: &str| {
        Config::parse(text).unwrap_or_else(|fault| panic!("{fault}: {text}")).upstream.remove(0)
    };
    let reference: String = DEFAULT
        .lines()
        .skip_while(|line| *line != "#[[upstream]]")
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix('#'))
        // An option follows its # at once, a comment does not.
        .filter(|line| !line.starts_with(' '))
        .filter(|line| {
            !["proxy", "ca_file", "name", "[["].iter().any(|other| line.starts_with(other))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let stated = upstream(&section(&reference));
    let unsaid = upstream(&section("base_url = \"https://api.openai.com/v1\""));
    for real in [&unsaid, &UpstreamSettings::openai()] {
        assert_eq!((&real.name, &real.base_url), (&stated.name, &stated.base_url));
        assert_eq!(real.connect_timeout, stated.connect_timeout);
        assert_eq!(real.first_byte_timeout, stated.first_byte_timeout);
        assert_eq!(real.idle_timeout, stated.idle_timeout);
        assert_eq!((real.kind, real.http2), (stated.kind, stated.http2));
        assert_eq!(
            (real.cache_key, &real.session_header),
            (stated.cache_key, &stated.session_header)
        );
        assert_eq!((real.credential, &real.query), (stated.credential, &stated.query));
        assert_eq!(real.models, stated.models);
        assert!(real.speaks.is_none() && real.proxy.is_none() && real.ca_file.is_none());
    }
    assert_eq!(stated.speaks.map(|speaks| speaks.len()), Some(3), "three protocols");
}

#[test]
fn defaults_are_those_of_the_contract() {
    use std::time::Duration;
    let config = Config::parse("").unwrap();
    let Config { server, store, binding, .. } = &config;
    assert_eq!(server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(server.admin_listen.to_string(), "127.0.0.1:9090");
    assert_eq!((server.max_body.0, server.replay_total.0), (64 << 20, 1 << 30));
    for (option, span, seconds) in [
        ("server.drain_delay", server.drain_delay, 15),
        ("server.drain", server.drain, 1_800),
        ("server.header_timeout", server.header_timeout, 10),
        ("server.ping", server.ping, 30),
        ("binding.ttl", binding.ttl, 720 * 3_600),
        ("binding.wait", binding.wait, 5),
    ] {
        assert_eq!(span.0, Duration::from_secs(seconds), "{option}");
    }
    assert_eq!((store.prefix.as_str(), store.timeout.0), ("warmkey", Duration::from_millis(50)));
    assert_eq!(binding.memory, 200_000);
    assert!(!server.open && !config.failover.ambiguous && config.hop.secret.is_none());
    assert!(server.secret.is_none() && server.admin_token.is_none());
    assert!(matches!(server.foreign_ids, turn::entry::ForeignIds::Refuse));
    let traced = &config.telemetry;
    assert_eq!((traced.log, traced.propagate), (telemetry::LogFormat::Json, false));
    assert_eq!((traced.collector(), traced.slow.0), (Ok(None), Duration::from_secs(120)));
    assert_eq!(traced.share(), Ok(telemetry::Share::ALL));
}

/// One value for each option that has a bound, and the complete error.
#[test]
fn option_out_of_bounds_is_refused_by_name() {
    let span =
        |value: &str| format!("\"{value}\" is too long: \"3650d\" is the longest span of time");
    for (section, line, expected) in [
        (
            "server",
            "listen = \"0.0.0.0:9090\"",
            "server.admin_listen: 127.0.0.1:9090 is server.listen's own address".into(),
        ),
        (
            "server",
            "listen = \"[::]:9090\"",
            "server.admin_listen: 127.0.0.1:9090 is server.listen's own address".into(),
        ),
        (
            "server",
            "listen = \"127.0.0.1:9090\"",
            "server.admin_listen: 127.0.0.1:9090 is server.listen's own address".into(),
        ),
        (
            "server",
            "header_timeout = \"0s\"",
            "server.header_timeout: must be longer than nothing".into(),
        ),
        ("server", "ping = \"0ms\"", "server.ping: must be longer than nothing".into()),
        ("store", "timeout = \"0s\"", "store.timeout: must be longer than nothing".into()),
        ("binding", "ttl = \"0d\"", "binding.ttl: must be longer than nothing".into()),
        ("server", "max_body = \"0B\"", "server.max_body: must be more than nothing".into()),
        (
            "server",
            "replay_total = \"0GiB\"",
            "server.replay_total: must be more than nothing".into(),
        ),
        ("binding", "memory = 0", "binding.memory: must be more than nothing".into()),
        (
            "server",
            "secret = \"0123456789abcdef0123456789abcde\"",
            "server.secret: has 31 bytes, needs at least 32".into(),
        ),
        ("server", "secret = \"\"", "server.secret: the secret in the file is empty".into()),
        (
            "server",
            "admin_token = \"\"",
            "server.admin_token: the secret in the file is empty".into(),
        ),
        ("hop", "secret = \"\"", "hop.secret: the secret in the file is empty".into()),
        ("store", "url = \"\"", "store.url: the secret in the file is empty".into()),
        ("store", "prefix = \"\"", "store.prefix: must be visible ASCII".into()),
        ("store", "prefix = \"two words\"", "store.prefix: must be visible ASCII".into()),
        ("store", "prefix = \"\u{e9}\"", "store.prefix: must be visible ASCII".into()),
        (
            "ledger",
            "url = \"w.db\"",
            "ledger.url: must be \"sqlite:FILE\", \"postgres://...\" or \"none:\"".into(),
        ),
        (
            "ledger",
            "url = \"sqlite:\"",
            "ledger.url: names no file: write \"sqlite:warmkey.db\"".into(),
        ),
        (
            "ledger",
            "url = \"postgres://u:canary@h:port\"",
            "ledger.url: is no postgres://[USER:PASSWORD@]HOST[:5432]/DATABASE".into(),
        ),
        ("telemetry", "slow = \"0s\"", "telemetry.slow: must be longer than nothing".into()),
        ("telemetry", "sample = -0.1", "telemetry.sample: must be from 0 to 1".into()),
        ("telemetry", "sample = 1.01", "telemetry.sample: must be from 0 to 1".into()),
        ("telemetry", "sample = nan", "telemetry.sample: must be from 0 to 1".into()),
        (
            "telemetry",
            "otlp_endpoint = \"http://u:canary@h:4317\"",
            "telemetry.otlp_endpoint: write \"http://HOST:4317\" (gRPC), or https, without user, path or query".into(),
        ),
        ("ledger", "retention = \"0d\"", "ledger.retention: must be longer than nothing".into()),
        (
            "ledger",
            "rollup_retention = \"0d\"",
            "ledger.rollup_retention: must be longer than nothing".into(),
        ),
        (
            "ledger",
            "time_zone = \"Europe/Atlantis\"",
            "ledger.time_zone: no such time zone: write \"Europe/Berlin\"".into(),
        ),
        ("server", "drain = \"3651d\"", format!("server.drain: {}", span("3651d"))),
        ("server", "drain_delay = \"3651d\"", format!("server.drain_delay: {}", span("3651d"))),
        ("binding", "ttl = \"3651d\"", format!("binding.ttl: {}", span("3651d"))),
        ("binding", "wait = \"3651d\"", format!("binding.wait: {}", span("3651d"))),
    ] {
        assert_eq!(fault(&format!("[{section}]\n{line}\n{KEY}")), Some(expected), "{line}");
    }
    let shown = "the secret in the file has a control character, or white space at an end";
    for (section, option) in
        [("[server]\nadmin_token", "server.admin_token"), ("[hop]\nsecret", "hop.secret")]
    {
        let text = format!("{section} = \"canary\\n\"\n{KEY}");
        assert_eq!(fault(&text), Some(format!("{option}: {shown}")), "{option}");
    }
    let client = format!("[[client]]\nid = \"alice\"\ntoken = \"canary \"\n{KEY}");
    assert_eq!(fault(&client), Some(format!("client alice: token: {shown}")));
    let key = KEY.replace("secret = \"", "secret = \" canary");
    assert_eq!(fault(&key), Some(format!("key a-1: secret: {shown}")));
}

/// Values without meaning or of the wrong kind. The parser's error says what may stand there.
#[test]
fn option_of_another_kind_is_refused_by_name() {
    for (line, option) in [
        ("[server]\nlisten = \"8080\"", "server.listen"),
        ("[server]\nadmin_listen = \"localhost:9090\"", "server.admin_listen"),
        ("[server]\nmax_body = 64", "server.max_body"),
        ("[server]\nping = 30", "server.ping"),
        ("[server]\nopen = \"perhaps\"", "server.open"),
        ("[server]\nforeign_ids = \"ignore\"", "foreign_ids"),
        ("[store]\ntimeout = \"50\"", "store.timeout"),
        ("[failover]\nambiguous = \"sometimes\"", "failover.ambiguous"),
        ("[telemetry]\nlog = \"xml\"", "telemetry.log"),
        ("[[upstream]]\nname = \"u\"\nbase_url = \"http://h\"\nspeaks = [\"smoke\"]", "speaks"),
        (
            "[[upstream]]\nname = \"u\"\nbase_url = \"http://h\"\nidle_timeout = \"1\"",
            "upstream[0].idle_timeout",
        ),
        (
            "[[client]]\nid = \"alice\"\ntoken = \"t\"\norganizations = \"org-a\"",
            "client[0].organizations",
        ),
    ] {
        let fault = fault(&format!("{KEY}{line}")).expect(line);
        assert!(fault.contains(option) && !fault.contains('\n'), "{line}: {fault}");
    }
    let count = "must be a whole number, not below 0 and not too large";
    for wrong in ["-1", "0.4", "1.0", "true", "\"heavy\""] {
        let weight = fault(&KEY.replace("id", &format!("weight = {wrong}\nid")));
        assert_eq!(weight, Some(format!("key[0].weight: {count}")), "{wrong}");
        let memory = fault(&format!("{KEY}[binding]\nmemory = {wrong}"));
        assert_eq!(memory, Some(format!("binding.memory: {count}")), "{wrong}");
    }
    let large = fault(&KEY.replace("id", "weight = 4294967296\nid"));
    assert_eq!(large, Some(format!("key[0].weight: {count}")));
}

/// The nearest accepted value, so that no bound is too tight.
#[test]
fn option_at_its_bound_is_accepted() {
    for line in [
        "[server]\nheader_timeout = \"1ms\"\nping = \"1ms\"\ndrain = \"0s\"\ndrain_delay = \"0s\"",
        "[server]\nmax_body = \"1B\"\nreplay_total = \"1B\"",
        "[server]\nsecret = \"0123456789abcdef0123456789abcdef\"",
        "[server]\nopen = true\nlisten = \"[::1]:8080\"",
        "[store]\ntimeout = \"1ms\"\nprefix = \"~\"",
        "[binding]\nttl = \"1ms\"\nwait = \"0s\"\nmemory = 1",
        "[binding]\nttl = \"3650d\"",
        "[[client]]\nid = \"alice\"\ntoken = \"t\"\norganizations = [\"org-a\", \"org-z\"]",
    ] {
        assert_eq!(fault(&format!("{KEY}{line}")), None, "{line}");
    }
}

#[test]
fn faults_are_told_together() {
    let text =
        format!("[server]\nping = \"0s\"\nmax_body = \"0B\"\n[hop]\nsecret = \"\"\n{KEY}{KEY}");
    let all = fault(&text).expect("four of them");
    let options: Vec<_> =
        all.lines().map(|line| line.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(options, ["hop.secret", "key", "server.ping", "server.max_body"]);
}

/// Replicas that share sessions share the secret of their hashes. A single replica makes up its
/// own.
#[test]
fn secret_may_be_left_out_where_nothing_is_shared() {
    let secret = |text: &str| Config::parse(text).unwrap().plan().map(|plan| plan.fixed.secret);
    let (one, other) = (secret(KEY).ok().unwrap(), secret(KEY).ok().unwrap());
    assert!(one != other && one.expose().len() == 64, "it is random");
    let faults = secret(&format!("[store]\nurl = \"redis://h\"\n{KEY}")).expect_err("it is shared");
    assert_eq!(
        faults,
        ["server.secret: replicas that share a store need one; set it, or WARMKEY_SECRET"]
    );
}
