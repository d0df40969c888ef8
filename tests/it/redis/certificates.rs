//! Certificates for one test: an authority, and a server that it vouches for.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::patience::{SOON, within};

pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub async fn make(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let made = Self { folder };
        let authority = [&["-subj", "/CN=warmkey test authority", "-addext", "keyUsage=critical,keyCertSign"][..]].concat();
        made.certify("ca", &authority).await;
        let (ca, key) = (made.path("ca.pem"), made.path("ca.key"));
        let server = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
        let signed = ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", &ca, "-CAkey", &key];
        made.certify("server", &[&server[..], &signed].concat()).await;
        made
    }

    async fn certify(&self, name: &str, options: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        command.arg("-keyout").arg(self.path(&format!("{name}.key"))).arg("-out").arg(self.path(&format!("{name}.pem")));
        command.args(options).stdin(Stdio::null()).kill_on_drop(true);
        let output = within(SOON, "openssl", command.output()).await.expect("openssl runs: install the package openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The file of the authority, for `store.ca_file`.
    pub fn authority(&self) -> String {
        self.path("ca.pem")
    }

    /// What makes a Redis speak TLS at this port; its own one stays plain, for the test itself.
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
