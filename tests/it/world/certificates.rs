//! Certificates for one test: an authority, and a server that the authority vouches for.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

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

    /// Arguments by which Redis speaks TLS at `port`. Its own port stays plain, for the test
    /// itself.
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
