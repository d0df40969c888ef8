//! Certificates for one test: an authority, and a server that the authority vouches for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::world::waiting::{SOON, within};

pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub async fn make(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let made = Self { folder };
        let authority =
            [&["-subj", "/CN=warmkey test authority", "-addext", "keyUsage=critical,keyCertSign"]
                [..]]
            .concat();
        made.certify("ca", &authority).await;
        made.server("server", "IP:127.0.0.1,DNS:localhost").await;
        made
    }

    /// Makes another server, for which the authority vouches under `names`.
    pub async fn server(&self, name: &str, names: &str) {
        let (ca, key, names) =
            (self.path("ca.pem"), self.path("ca.key"), format!("subjectAltName={names}"));
        self.certify(name, &[&plain(&names)[..], &["-CA", &ca, "-CAkey", &key]].concat()).await;
    }

    /// Makes a server whose certificate ended yesterday.
    pub async fn expired(&self, name: &str, names: &str) {
        let (ca, key, own) =
            (self.path("ca.pem"), self.path("ca.key"), self.path(&format!("{name}.pem")));
        self.certify(name, &plain(&format!("subjectAltName={names}"))).await;
        run(Command::new("openssl")
            .args(["x509", "-in", &own, "-CA", &ca, "-CAkey", &key, "-days", "-1", "-out", &own]))
        .await;
    }

    async fn certify(&self, name: &str, options: &[&str]) {
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]);
        command
            .arg("-keyout")
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.pem")));
        run(command.args(options)).await;
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The file of the authority, for `store.ca_file`.
    pub fn authority(&self) -> String {
        self.path("ca.pem")
    }

    /// Opens a TLS connection to a server for which the authority vouches. The client offers no
    /// protocol by ALPN, which means HTTP/1.1.
    pub async fn connect(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let authority = CertificateDer::from_pem_file(self.authority()).expect("it is PEM");
        let mut roots = RootCertStore::empty();
        roots.add(authority).expect("it is a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.expect("the listener accepts");
        let connecting =
            TlsConnector::from(Arc::new(config)).connect(ServerName::from(address.ip()), stream);
        within(SOON, "a handshake", connecting).await.expect("the server is trusted")
    }

    /// Returns the arguments with which Redis speaks TLS at `port`. Its own port stays without TLS,
    /// for the test itself.
    pub fn arguments(&self, port: u16) -> Vec<String> {
        let option = |name: &str, value: String| [format!("--tls-{name}"), value];
        [
            option("port", port.to_string()),
            option("cert-file", self.path("server.pem")),
            option("key-file", self.path("server.key")),
            option("ca-cert-file", self.authority()),
            option("auth-clients", "no".into()),
        ]
        .concat()
    }
}

const fn plain(names: &str) -> [&str; 6] {
    ["-subj", "/CN=server", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"]
}

async fn run(command: &mut Command) {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let output = within(SOON, "openssl", command.output())
        .await
        .expect("openssl runs: install the package openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
