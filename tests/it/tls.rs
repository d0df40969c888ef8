//! Tests TLS on the clients' listener: HTTP/1.1 and HTTP/2 by ALPN, WebSockets, and a certificate
//! that changes while it is in use.

use std::net::SocketAddr;
use std::path::Path;

use http::Version;
use tokio::process::Command;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use futures_util::{SinkExt, StreamExt};

use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster, RELOADS};
use crate::world::process::{Folder, WARMKEY};
use crate::world::waiting::{ANSWER, SOON, within};

const TURN: &str = r#"{"model":"gpt-5.4","stream":true,"store":false,"input":"hello"}"#;
const FAILURES: &str = "warmkey_reload_failures_total";

fn with_tls(folder: &Path) -> Cluster {
    let (certificate, key) = (folder.join("tls.pem"), folder.join("tls.key"));
    Cluster::new().server("tls", &format!("{{ cert_file = {certificate:?}, key_file = {key:?} }}"))
}

/// Writes both files of `made`, which the server uses from now on. They change together, as far as
/// files can.
fn show(folder: &Path, made: &Certificates) {
    for (from, to) in [("server.pem", "tls.pem"), ("server.key", "tls.key")] {
        std::fs::copy(made.path(from), folder.join(to))
            .expect("the temporary folder can be written");
    }
}

/// A client that trusts this authority alone.
fn client(made: &Certificates) -> reqwest::ClientBuilder {
    let authority = std::fs::read(made.authority()).expect("the authority is there");
    let authority = reqwest::Certificate::from_pem(&authority).expect("the authority is PEM");
    reqwest::Client::builder().no_proxy().tls_certs_only([authority]).timeout(ANSWER)
}

async fn turn(client: &reqwest::Client, address: SocketAddr) -> reqwest::Result<(Version, String)> {
    let request = client.post(format!("https://{address}/v1/responses")).bearer_auth(ALICE);
    let answer = request.header("content-type", "application/json").body(TURN).send().await?;
    Ok((answer.version(), answer.text().await?))
}

#[tokio::test]
async fn client_speaks_http_2_where_it_can_and_1_where_it_cannot() {
    let folder = Folder::new();
    let made = Certificates::make(folder.path(), "one").await;
    show(folder.path(), &made);
    let cluster = with_tls(folder.path()).start().await;
    for (client, expected) in
        [(client(&made), Version::HTTP_2), (client(&made).http1_only(), Version::HTTP_11)]
    {
        let (version, text) =
            turn(&client.build().unwrap(), cluster.address()).await.expect("a turn through TLS");
        assert_eq!(version, expected);
        assert!(text.contains("response.completed"), "{text}");
    }
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(
        plain.get(format!("http://{}/v1/models", cluster.address())).send().await.is_err(),
        "nothing is said in the clear"
    );
    assert_eq!(
        cluster.replica().probe("/readyz").await.status,
        200,
        "the admin listener stays plain"
    );
}

#[tokio::test]
async fn websocket_goes_through_tls() {
    let folder = Folder::new();
    let made = Certificates::make(folder.path(), "one").await;
    show(folder.path(), &made);
    let cluster = with_tls(folder.path()).start().await;
    let client = client(&made).http1_only().build().unwrap();
    let answer = client
        .get(format!("https://{}/v1/responses", cluster.address()))
        .bearer_auth(ALICE)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "aMgmqkQqgExh1/SCvQpsDA==")
        .header("session-id", "through-tls")
        .send()
        .await
        .expect("a handshake");
    assert_eq!(answer.status(), 101);
    let connection = answer.upgrade().await.expect("a connection");
    let mut socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
    let request = TURN.replacen('{', r#"{"type":"response.create","#, 1);
    socket.send(Message::text(request)).await.expect("the connection is open");
    let completed = async {
        while let Some(Ok(message)) = socket.next().await {
            if message.to_text().is_ok_and(|text| text.contains(r#""type":"response.completed""#)) {
                return true;
            }
        }
        false
    };
    assert!(within(ANSWER, "an answer", completed).await);
}

#[tokio::test]
async fn certificate_that_changes_is_shown_to_new_connections() {
    let folder = Folder::new();
    let (one, two) = (
        Certificates::make(folder.path(), "one").await,
        Certificates::make(folder.path(), "two").await,
    );
    show(folder.path(), &one);
    let cluster = with_tls(folder.path()).start().await;
    let (old, new) = (client(&one).build().unwrap(), client(&two).build().unwrap());
    turn(&old, cluster.address()).await.expect("the first certificate is trusted");
    assert!(
        turn(&new, cluster.address()).await.is_err(),
        "another authority's client does not trust it"
    );

    // The key belongs to another certificate, so the server keeps the certificate in use.
    std::fs::copy(two.path("server.key"), folder.path().join("tls.key")).unwrap();
    cluster.shows(FAILURES, 1.0).await;
    cluster.replica().says("cannot be used together").await;
    turn(&client(&one).build().unwrap(), cluster.address())
        .await
        .expect("the first certificate is still shown");

    show(folder.path(), &two);
    cluster.shows(RELOADS, 1.0).await;
    turn(&new, cluster.address()).await.expect("the second certificate is shown");
    turn(&old, cluster.address()).await.expect("a connection from before goes on");
    assert!(
        turn(&client(&one).build().unwrap(), cluster.address()).await.is_err(),
        "the first certificate is gone"
    );
}

#[tokio::test]
async fn peer_that_never_shakes_hands_is_let_go() {
    let folder = Folder::new();
    let made = Certificates::make(folder.path(), "one").await;
    show(folder.path(), &made);
    let cluster = with_tls(folder.path()).server("header_timeout", "\"500ms\"").start().await;
    let mut silent = tokio::net::TcpStream::connect(cluster.address()).await.unwrap();
    let mut byte = [0];
    let read = within(SOON, "the end", tokio::io::AsyncReadExt::read(&mut silent, &mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn probe_trusts_the_certificate_that_is_configured_and_no_other() {
    let folder = Folder::new();
    let (one, two) = (
        Certificates::make(folder.path(), "one").await,
        Certificates::make(folder.path(), "two").await,
    );
    // The certificate's name differs from the name that the probe uses.
    one.server("server", "DNS:warmkey.example.com").await;
    show(folder.path(), &one);
    let cluster = with_tls(folder.path()).start().await;
    let probe = async |file: &Path| {
        let mut command = Command::new(WARMKEY);
        command.args(["probe", "session", "--config"]).arg(file).kill_on_drop(true);
        let output = within(SOON, "probe", command.output()).await.expect("warmkey can be run");
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (is_served, said) = probe(&cluster.replica().file()).await;
    assert!(is_served && said.contains("two turns served"), "{said}");
    let other = std::fs::read_to_string(cluster.replica().file()).unwrap();
    let other = ["pem", "key"].iter().fold(other, |text, end| {
        let shown = folder.path().join(format!("tls.{end}"));
        text.replace(shown.to_str().unwrap(), &two.path(&format!("server.{end}")))
    });
    let (is_served, said) = probe(&folder.write("other.toml", &other)).await;
    assert!(!is_served && said.contains("does not speak TLS with the certificate"), "{said}");
}
