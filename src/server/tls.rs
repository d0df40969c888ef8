//! TLS on the clients' listener: which certificate it shows, and how a connection begins.
//!
//! The certificate is read with the configuration and replaced by a reload. Open connections keep
//! the one that they began with. Never logs a key or the content of a file.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, CertificateError, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::server::TlsStream;

use crate::current::Current;

/// Protocols that clients are offered, the preferred one first (ALPN).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The options under `[server.tls]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The server's certificate in PEM, followed by the certificates that lead to an authority.
    pub cert_file: PathBuf,
    /// The certificate's private key in PEM.
    pub key_file: PathBuf,
}

/// A certificate with its chain and its private key.
#[derive(Clone)]
pub struct Certificate(Arc<CertifiedKey>);

impl TlsSettings {
    /// Reads both files, and checks that the key belongs to the certificate.
    pub fn read(&self) -> Result<Certificate, String> {
        let chain = CertificateDer::pem_file_iter(&self.cert_file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| {
                format!("server.tls.cert_file: {}: {}", self.cert_file.display(), described(&error))
            })?;
        if chain.is_empty() {
            return Err(format!(
                "server.tls.cert_file: {}: holds no certificate",
                self.cert_file.display()
            ));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key_file).map_err(|error| {
            format!("server.tls.key_file: {}: {}", self.key_file.display(), described(&error))
        })?;
        let certified =
            CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
                format!("server.tls: the certificate and the key cannot be used together: {error}")
            })?;
        Ok(Certificate(Arc::new(certified)))
    }
}

/// Describes a fault in Warmkey's own words, because the library's text may show a line of the
/// file.
fn described(error: &PemError) -> String {
    match error {
        PemError::Io(error) => format!("cannot be read: {error}"),
        PemError::NoItemsFound => "holds no PEM section of that kind".into(),
        _ => "is no PEM".into(),
    }
}

/// Begins connections with the current certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: tokio_rustls::TlsAcceptor,
    shown: Arc<Shown>,
}

impl Tls {
    pub fn new(certificate: Certificate) -> Result<Self, String> {
        let shown = Arc::new(Shown(Current::new(certificate.0)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("server.tls: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as _);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self { acceptor: Arc::new(config).into(), shown })
    }

    /// Makes new connections use another certificate from now on.
    pub fn replace(&self, certificate: Certificate) {
        self.shown.0.set(certificate.0);
    }

    /// Runs a TLS handshake. The caller limits how long a client may take.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

struct Shown(Current<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

/// Accepts exactly one certificate, under any server name. Serves a client on the same machine.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: CryptoProvider,
}

impl Certificate {
    /// Returns the client's side of TLS for a client that has the certificate's file. It may reach
    /// the server by a name that the certificate lacks.
    pub fn pinned(&self) -> Result<ClientConfig, String> {
        let certificate = self
            .0
            .end_entity_cert()
            .map_err(|error| format!("server.tls: {error}"))?
            .clone()
            .into_owned();
        let pinned = Pinned { certificate, provider: default_provider() };
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("server.tls: {error}"))?;
        Ok(config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match *shown == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}
