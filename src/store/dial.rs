//! Opens connections to Redis at the configured address, with the current credentials.
//!
//! Each attempt reads the address again, so that a password changed in a file takes effect at once.
//! Other modules decide whether a connection is good enough.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::StoreSettings;
use super::address::{Address, Host, StoreKind};
use super::fault::StoreFault;
use super::name::Name;

/// Time after which the kernel drops a peer that acknowledges nothing, whether data is sent or not.
const VANISHED: Duration = Duration::from_secs(5);
/// Minimum time for an attempt to connect, with name resolution and greeting. A Redis that was
/// stopped answers the greeting as soon as it continues. A Redis that was cut off is found by the
/// next attempt.
const CONNECT: Duration = Duration::from_secs(1);

/// The credentials that a connection sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// User, password and database.
    Everything,
    /// None of them.
    Nothing,
}

/// Opens connections.
pub struct Dialer {
    settings: StoreSettings,
    /// The kind of the address at the start. A change of the kind needs a restart.
    kind: StoreKind,
}

impl Dialer {
    pub fn new(settings: &StoreSettings) -> Result<Self, String> {
        let address = settings.address()?;
        let dialer = Self { settings: settings.clone(), kind: address.kind.clone() };
        dialer
            .client(&address, &address.hosts[0], Shown::Nothing)
            .map_err(|fault| fault.to_string())?;
        Ok(dialer)
    }

    pub const fn kind(&self) -> &StoreKind {
        &self.kind
    }

    /// Budget of one turn for all its store operations.
    pub const fn timeout(&self) -> Duration {
        self.settings.timeout.0
    }

    /// Time for an attempt to connect.
    pub fn connect_timeout(&self) -> Duration {
        CONNECT.max(self.timeout() * 2)
    }

    /// Returns the full name of `name` in this deployment.
    pub fn name(&self, name: Name<'_>) -> String {
        name.under(&self.settings.prefix)
    }

    /// Returns the part of `text` after this deployment's prefix. `None`: the name is of another
    /// deployment.
    pub fn bare<'t>(&self, text: &'t str) -> Option<&'t str> {
        text.strip_prefix(&*self.settings.prefix)?.strip_prefix(':')
    }

    /// Returns the `SCAN` pattern of this deployment's names.
    pub fn pattern(&self) -> String {
        pattern(&self.settings.prefix)
    }

    /// Reads the current address.
    pub fn address(&self) -> Result<Address, StoreFault> {
        let address = self.settings.address().map_err(StoreFault::Unready)?;
        match std::mem::discriminant(&address.kind) == std::mem::discriminant(&self.kind) {
            true => Ok(address),
            false => Err(StoreFault::Unready(
                "store.url: another kind of address takes a restart".into(),
            )),
        }
    }

    /// Opens a shared connection to `host`. Has no timeout of its own.
    pub async fn dial(
        &self,
        address: &Address,
        host: &Host,
        shown: Shown,
    ) -> Result<MultiplexedConnection, StoreFault> {
        let client = self.client(address, host, shown)?;
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting =
            async move { client.get_multiplexed_async_connection_with_config(&settings).await };
        self.reach(address, connecting).await
    }

    /// Opens a connection to `host` for subscriptions. Has no timeout of its own.
    pub async fn subscribe(&self, host: &Host) -> Result<PubSub, StoreFault> {
        let address = self.address()?;
        let client = self.client(&address, host, Shown::Everything)?;
        self.reach(&address, async move { client.get_async_pubsub().await }).await
    }

    #[expect(clippy::disallowed_methods, reason = "ends with its caller, whose timeout is short")]
    async fn reach<T: Send + 'static>(
        &self,
        address: &Address,
        connecting: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> Result<T, StoreFault> {
        if !address.is_tls {
            return Ok(connecting.await?);
        }
        // Each TLS connection reads the system's certificates, which blocks. A thread that serves
        // turns must not do this.
        let (runtime, given_up) = (Handle::current(), CancellationToken::new());
        let _guard = given_up.clone().drop_guard();
        let blocking = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = connecting => result.map_err(StoreFault::from),
                    () = given_up.cancelled() => Err(StoreFault::Away),
                }
            })
        });
        blocking.await.unwrap_or(Err(StoreFault::Away))
    }

    /// Returns the fault of a greeting that took longer than [`Self::connect_timeout`].
    pub fn late(&self) -> StoreFault {
        match self.address() {
            Ok(address) if address.is_tls => {
                StoreFault::Late("no greeting in time: perhaps this port does not use TLS")
            }
            _ => StoreFault::Late("no greeting in time"),
        }
    }

    /// Returns a client that opens connections to `host`.
    pub fn client(
        &self,
        address: &Address,
        host: &Host,
        shown: Shown,
    ) -> Result<Client, StoreFault> {
        let (name, port) = (host.name.clone(), host.port);
        let place = match address.is_tls {
            true => ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(name, port),
        };
        // Sending the library's name would cost a round trip and need a permission.
        let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        if shown == Shown::Everything {
            greeting = greeting.set_db(address.database.into());
            if let Some(user) = &address.user {
                greeting = greeting.set_username(user);
            }
            if let Some(password) = &address.password {
                greeting = greeting.set_password(password.expose());
            }
        }
        let info =
            place.into_connection_info()?.set_redis_settings(greeting).set_tcp_settings(tcp());
        match self.settings.authorities().map_err(StoreFault::Unready)? {
            root_cert @ Some(_) => {
                Ok(Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?)
            }
            None => Ok(Client::open(info)?),
        }
    }
}

fn tcp() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(VANISHED / 2).with_interval(Duration::from_secs(1));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(VANISHED);
    tcp
}

/// Returns a pattern that matches only names under `prefix`. Escapes the characters that are
/// special to `SCAN`.
fn pattern(prefix: &str) -> String {
    let escaped = |letter| [Some('\\').filter(|_| r"*?[]\^".contains(letter)), Some(letter)];
    prefix.chars().flat_map(escaped).flatten().chain(":*".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Secret, SecretSource, Span};

    fn settings(url: SecretSource, ca_file: Option<&str>) -> StoreSettings {
        StoreSettings {
            url,
            prefix: "w".into(),
            timeout: Span(Duration::from_millis(50)),
            ca_file: ca_file.map(Into::into),
        }
    }

    fn text(url: &str) -> SecretSource {
        SecretSource::Text(Secret::new(url))
    }

    #[test]
    fn credentials_are_sent_only_where_they_belong() {
        let dialer =
            Dialer::new(&settings(text("redis-sentinel://u:p%40@h/main/3"), None)).unwrap();
        let address = dialer.address().unwrap();
        let greeting = |shown| {
            let client = dialer.client(&address, &address.hosts[0], shown).unwrap();
            let greeting = client.get_connection_info().redis_settings().clone();
            (
                greeting.username().map(str::to_owned),
                greeting.password().map(str::to_owned),
                greeting.db(),
            )
        };
        assert_eq!(greeting(Shown::Everything), (Some("u".into()), Some("p@".into()), 3));
        assert_eq!(greeting(Shown::Nothing), (None, None, 0));
    }

    #[test]
    fn address_is_read_again_and_keeps_its_kind() {
        let path = std::env::temp_dir().join(format!("warmkey-dial-{}", std::process::id()));
        let write = |url: &str| std::fs::write(&path, format!("{url}\n")).unwrap();
        write("redis-sentinel://a/main");
        let dialer = Dialer::new(&settings(SecretSource::File(path.clone()), None)).unwrap();
        write("redis-sentinel://:new@b,c/other");
        let address = dialer.address().unwrap();
        assert_eq!((address.kind, address.hosts.len()), (StoreKind::Sentinel("other".into()), 2));
        for other in ["redis://:canary@a", "redis-cluster://:canary@a"] {
            write(other);
            let fault = dialer.address().expect_err(other).to_string();
            assert!(fault.contains("takes a restart") && !fault.contains("canary"), "{fault}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn authorities_are_for_tls_and_hold_certificates() {
        for (url, file, word) in [
            ("redis://h", "Cargo.toml", "is for rediss addresses only"),
            ("rediss://h", "no/such/file", "cannot read no/such/file"),
            ("rediss://h", "Cargo.toml", "no certificate is in Cargo.toml"),
        ] {
            let fault = Dialer::new(&settings(text(url), Some(file))).err().expect(word);
            assert!(fault.starts_with("store.ca_file: ") && fault.contains(word), "{fault}");
        }
        assert!(Dialer::new(&settings(text("rediss://h"), None)).is_ok());
    }

    #[test]
    fn pattern_matches_the_prefix_literally() {
        for (prefix, expected) in
            [("warmkey", "warmkey:*"), ("w*", r"w\*:*"), (r"a?[b-c]^\", r"a\?\[b-c\]\^\\:*")]
        {
            assert_eq!(pattern(prefix), expected, "{prefix}");
        }
    }
}
