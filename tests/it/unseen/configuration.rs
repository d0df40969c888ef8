//! Number 7: a configuration that is accepted works. An option that says where traffic goes or what
//! is trusted is understood entirely. Otherwise the start is refused, with a line that names the
//! option.

use tokio::process::Command;

use crate::world::certificates::Certificates;
use crate::world::process::{Folder, WARMKEY};
use crate::world::waiting::{SOON, within};

const SECRET: &str = "secret-canary-0123456789abcdefghijklmnopqrstuvwxyz";

/// Words that only a program's author knows.
const FOREIGN: [&str; 22] = [
    "reqwest",
    "builder error",
    "rustls",
    "SocketAddr",
    "socket address",
    "Url",
    "RelativeUrl",
    "relative URL",
    "enum ",
    "variant",
    "struct ",
    "expected a ",
    "tonic",
    "sqlx",
    "serde",
    "PathBuf",
    "Option<",
    "Settings",
    "unwrap",
    "None",
    "Err(",
    "invalid type",
];

/// Returns a configuration whose options are valid together. `options`: values that replace some of
/// them.
pub fn written(options: &[(&str, &str, String)]) -> String {
    let value = |section: &str, option: &str, usual: &str| {
        let given =
            options.iter().find(|(in_section, name, _)| (*in_section, *name) == (section, option));
        let value = given.map_or(usual, |(_, _, value)| value);
        if value.is_empty() { String::new() } else { format!("{option} = {value}\n") }
    };
    let section = |name: &str, pairs: &[(&str, &str)]| {
        let lines: String =
            pairs.iter().map(|(option, usual)| value(name, option, usual)).collect();
        format!("[{name}]\n{lines}")
    };
    let quoted = format!("{SECRET:?}");
    [
        section(
            "server",
            &[
                ("listen", "\"127.0.0.1:0\""),
                ("admin_listen", "\"127.0.0.1:0\""),
                ("secret", &quoted),
                ("admin_token", ""),
                ("tls", ""),
                ("foreign_ids", ""),
            ],
        ),
        section("store", &[("url", "\"memory:\""), ("ca_file", "")]),
        section("ledger", &[("url", "\"none:\"")]),
        section("telemetry", &[("otlp_endpoint", "")]),
        section("hop", &[("secret", "")]),
        section(
            "[upstream]",
            &[
                ("name", "\"openai\""),
                ("base_url", "\"http://127.0.0.1:9/v1\""),
                ("proxy", ""),
                ("ca_file", ""),
                ("query", ""),
                ("kind", ""),
                ("credential", ""),
                ("session_header", ""),
                ("models", ""),
            ],
        ),
        section(
            "[key]",
            &[
                ("id", "\"a-1\""),
                ("upstream", "\"openai\""),
                ("organization", "\"org-a\""),
                ("secret", "\"sk-canary-1\""),
            ],
        ),
        section(
            "[client]",
            &[
                ("id", "\"alice\""),
                ("token", "\"token-canary-alice\""),
                ("token_file", ""),
                ("token_sha256", ""),
            ],
        ),
    ]
    .concat()
}

pub async fn run(command: &str, text: &str, folder: &Folder) -> (Option<i32>, String) {
    let file = folder.write("warmkey.toml", text);
    let mut child = Command::new(WARMKEY);
    child.arg(command).arg("--config").arg(file).kill_on_drop(true);
    let output = within(SOON, "the end of a bad start", child.output()).await.expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// One line that names the option, with no secret and no word of the program's own.
async fn is_refused(folder: &Folder, options: &[(&str, &str, String)], name: &str) {
    let text = written(options);
    let (code, said) = run("serve", &text, folder).await;
    let what = format!("{options:?}\n{said}");
    assert_eq!(code, Some(64), "{what}");
    assert_eq!(said.lines().count(), 1, "one line: {what}");
    assert!(said.contains(name), "names {name}: {what}");
    assert!(!said.contains("canary"), "no secret: {what}");
    let foreign = FOREIGN.iter().find(|word| said.contains(**word));
    assert_eq!(foreign, None, "{what}");
}

pub fn text(value: &str) -> String {
    format!("{value:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn option_that_names_where_traffic_goes_is_understood_or_refused() {
    let folder = Folder::new();
    let (code, said) = run("check", &written(&[]), &folder).await;
    assert_eq!(code, Some(0), "the rest is valid: {said}");
    let addresses = [
        "",
        "somewhere",
        "localhost:8080",
        "127.0.0.1",
        "127.0.0.1:",
        ":8080",
        "127.0.0.1:99999",
        "http://127.0.0.1:8080",
        "127.0.0.1:80:80",
        "[::1]",
        "256.0.0.1:80",
        " 127.0.0.1:80",
    ];
    let urls = [
        "",
        "h",
        "h:80",
        "//h",
        "ftp://h",
        "socks5://h:1",
        "ws://h",
        "http:h",
        "http:///v1",
        "http://",
        "http://:80",
        "http://h:0",
        "http://h:x",
        "http://u:canary@h",
        "http://h\\v1",
        " http://h",
        "http://h /v1",
        "http://h/v1?a=canary",
        "http://h/v1#a",
        "http://h/../v1",
        "https//h",
        "https://h:99999",
        "http://[::1",
        "unix:/run/x",
    ];
    let proxies = [
        "",
        "h:3128",
        "socks5://h:1080",
        "socks5h://h:1080",
        "socks4://u:canary@h",
        "ftp://h",
        "http://h/path",
        "http://h?canary",
        "http://:canary@h",
        "http://",
        "http://h:0",
        "direct",
    ];
    let stores = [
        "",
        "redis",
        "redis:",
        "redis://",
        "redis://h:x",
        "redis://u:canary@h:0",
        "redis+unix:///x",
        "unix:///run/redis.sock",
        "http://h:6379",
        "mysql://u:canary@h",
        "redis://h,i",
        "redis-sentinel://h",
        "redis-cluster://h/1",
        "redis://h/x",
        "redis://h?canary=1",
        "memory",
        "memory:x",
        "REDIS://h",
    ];
    let ledgers = [
        "",
        "none",
        "sqlite:",
        "mysql://u:canary@h/d",
        "postgres://",
        "postgres:///d",
        "postgres://u:canary@h:x/d",
        "postgres://u:canary@h:0/d",
        "postgres://u:canary@h/d?sslmod=x",
        "postgres://u:canary@h/d?sslmode=canary",
        "postgres://h/d?sslrootcert=/nowhere/at/all",
    ];
    let collectors = [
        "h",
        "h:4317",
        "ftp://h",
        "grpc://h:4317",
        "http://u:canary@h",
        "http://h/v1/traces",
        "http://h?canary",
        "http://",
        "unix:/x",
    ];
    for (section, option, name, values) in [
        ("server", "listen", "server.listen", &addresses[..]),
        ("server", "admin_listen", "server.admin_listen", &addresses),
        ("[upstream]", "base_url", "base_url", &urls),
        ("[upstream]", "proxy", "proxy", &proxies),
        ("store", "url", "store.url", &stores),
        ("ledger", "url", "ledger.url", &ledgers),
        ("telemetry", "otlp_endpoint", "telemetry.otlp_endpoint", &collectors),
        ("[upstream]", "query", "query", &["a b", "a#b", "a\nb", "\u{e9}"]),
        ("[upstream]", "kind", "kind", &["", "azure", "OpenAI"]),
        ("[upstream]", "credential", "credential", &["", "basic", "Bearer"]),
        (
            "[upstream]",
            "session_header",
            "session_header",
            &["authorization", "Host", "a b", "\u{e9}"],
        ),
        ("[key]", "upstream", "upstream", &["", "elsewhere"]),
        ("server", "foreign_ids", "foreign_ids", &["", "maybe", "Pass"]),
    ] {
        for value in values {
            is_refused(&folder, &[(section, option, text(value))], name).await;
        }
        // These values have another type than text. Where any text is valid, a number and a word
        // are text.
        let is_free = matches!(option, "query" | "session_header");
        let odd = ["[\"a\"]", "{ x = \"y\" }", "5", "true"];
        for value in &odd[..if is_free { 2 } else { 4 }] {
            is_refused(&folder, &[(section, option, (*value).into())], option).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn option_that_names_what_is_trusted_is_understood_or_refused() {
    let folder = Folder::new();
    let certificates = Certificates::make(folder.path(), "tls").await;
    let (certificate, key) =
        (text(&certificates.path("server.pem")), text(&certificates.path("server.key")));
    let empty = text(&folder.write("empty.pem", "").display().to_string());
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbage = text(&folder.write("garbage.pem", garbage).display().to_string());
    let prose = text(&folder.write("prose.pem", "canary, no certificate").display().to_string());
    let nowhere = text("/nowhere/at/all");
    let itself = text(&folder.path().display().to_string());
    let https = ("[upstream]", "base_url", text("https://h/v1"));
    let rediss = ("store", "url", text("rediss://h"));
    for file in [&nowhere, &empty, &garbage, &prose, &itself] {
        is_refused(&folder, &[https.clone(), ("[upstream]", "ca_file", file.clone())], "ca_file")
            .await;
        is_refused(&folder, &[rediss.clone(), ("store", "ca_file", file.clone())], "store.ca_file")
            .await;
        let pair = |cert: &str, key: &str| format!("{{ cert_file = {cert}, key_file = {key} }}");
        for tls in [pair(file, &key), pair(&certificate, file)] {
            is_refused(&folder, &[("server", "tls", tls)], "server.tls").await;
        }
    }
    // These are a file for an option that needs none, and halves of a pair.
    is_refused(&folder, &[("[upstream]", "ca_file", certificate.clone())], "ca_file").await;
    is_refused(&folder, &[("store", "ca_file", certificate.clone())], "store.ca_file").await;
    let plain = ("store", "url", text("redis://h"));
    is_refused(&folder, &[plain, ("store", "ca_file", certificate.clone())], "store.ca_file").await;
    for tls in [
        format!("{{ cert_file = {certificate} }}"),
        format!("{{ key_file = {key} }}"),
        "{}".to_owned(),
        "true".to_owned(),
        format!("{{ cert_file = {certificate}, key_file = {key}, verify = false }}"),
    ] {
        is_refused(&folder, &[("server", "tls", tls)], "server.tls").await;
    }
    for source in [
        "{ file = \"/nowhere/at/all\" }".to_owned(),
        format!("{{ file = {itself} }}"),
        format!("{{ file = {empty} }}"),
        "{ env = \"WARMKEY_IT_IS_NOT_SET\" }".to_owned(),
        "{ enviroment = \"X\" }".to_owned(),
        "{ file = \"/x\", env = \"X\" }".to_owned(),
        "[\"canary\"]".to_owned(),
        "5".to_owned(),
        text(""),
    ] {
        for (section, option, name) in [
            ("server", "secret", "server.secret"),
            ("server", "admin_token", "server.admin_token"),
            ("hop", "secret", "hop.secret"),
            ("[key]", "secret", "secret"),
            ("[client]", "token", "token"),
        ] {
            is_refused(&folder, &[(section, option, source.clone())], name).await;
        }
    }
    let no_token = ("[client]", "token", String::new());
    for (option, value) in [
        ("token_file", nowhere.clone()),
        ("token_file", itself.clone()),
        ("token_sha256", text("canary")),
        ("token_sha256", text(&"g".repeat(64))),
    ] {
        let mut options = vec![no_token.clone(), ("[client]", option, value)];
        if option == "token_file" {
            options.push(("[client]", "id", String::new()));
        }
        is_refused(&folder, &options, option).await;
    }
}
