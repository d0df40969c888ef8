//! How a connection to a Redis is made: where the address says, with what it says now.
//!
//! The address is read again for each attempt, so that a password that was changed in its file is
//! used at once. What decides whether a connection is good enough is not here.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    RedisResult, TlsCertificates,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::address::{Address, Host, StoreKind};
use super::fault::StoreFault;
use super::name::Name;

/// How long the kernel believes in a peer that acknowledges nothing, asked or not.
const VANISHED: Duration = Duration::from_secs(5);
/// An attempt, with name resolution and greeting, at least. A Redis that was stopped greets as soon
/// as it goes on, and one that was cut off is found by the next attempt.
const CONNECT: Duration = Duration::from_secs(1);

/// Whom a connection is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// User, password and database.
    Everything,
    /// None of them.
    Nothing,
}

pub struct Dialer {
    settings: Settings,
    /// What the address was at the start: a change to another kind needs another start.
    kind: StoreKind,
}

impl Dialer {
    pub fn new(settings: &Settings) -> Result<Self, String> {
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

    /// All store operations of one turn together may take so long.
    pub const fn timeout(&self) -> Duration {
        self.settings.timeout.0
    }

    /// How long an attempt to connect may take.
    pub fn patience(&self) -> Duration {
        CONNECT.max(self.timeout() * 2)
    }

    /// `name` as it is spelled in this deployment's store.
    pub fn name(&self, name: Name<'_>) -> String {
        name.under(&self.settings.prefix)
    }

    /// The part of `text` that follows this deployment's prefix: `None` for a name of another
    /// deployment.
    pub fn bare<'t>(&self, text: &'t str) -> Option<&'t str> {
        text.strip_prefix(&*self.settings.prefix)?.strip_prefix(':')
    }

    /// What the names of this deployment look like to `SCAN`.
    pub fn pattern(&self) -> String {
        pattern(&self.settings.prefix)
    }

    /// The address as it is written now.
    pub fn address(&self) -> Result<Address, StoreFault> {
        let address = self.settings.address().map_err(StoreFault::Unready)?;
        match std::mem::discriminant(&address.kind) == std::mem::discriminant(&self.kind) {
            true => Ok(address),
            false => Err(StoreFault::Unready(
                "store.url: has become another kind of address: that takes a restart".into(),
            )),
        }
    }

    /// A connection to `host` that many share. Waits as long as it takes.
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

    /// A connection to `host` for what is published there. Waits as long as it takes.
    pub async fn subscribe(&self, host: &Host) -> Result<PubSub, StoreFault> {
        let address = self.address()?;
        let client = self.client(&address, host, Shown::Everything)?;
        self.reach(&address, async move { client.get_async_pubsub().await }).await
    }

    async fn reach<T: Send + 'static>(
        &self,
        address: &Address,
        connecting: impl Future<Output = RedisResult<T>> + Send + 'static,
    ) -> Result<T, StoreFault> {
        if !address.is_tls {
            return Ok(connecting.await?);
        }
        // Reads the system's certificates anew each time, which blocks: that is no work for a
        // thread that serves turns.
        let (runtime, given_up) = (Handle::current(), CancellationToken::new());
        let _guard = given_up.clone().drop_guard();
        let aside = spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = connecting => result.map_err(StoreFault::from),
                    () = given_up.cancelled() => Err(StoreFault::Away),
                }
            })
        });
        aside.await.unwrap_or(Err(StoreFault::Away))
    }

    /// What to say of a greeting that has taken longer than [`Self::patience`].
    pub fn late(&self) -> StoreFault {
        match self.address() {
            Ok(address) if address.is_tls => {
                StoreFault::Late("no greeting in time: perhaps it does not speak TLS on this port")
            }
            _ => StoreFault::Late("no greeting in time"),
        }
    }

    /// What makes connections to `host`.
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
        // Its own name would cost a round trip, and a permission.
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

/// Matches the names under `prefix` alone: what `SCAN` gives a meaning to is escaped.
fn pattern(prefix: &str) -> String {
    let escaped = |letter| [Some('\\').filter(|_| r"*?[]\^".contains(letter)), Some(letter)];
    prefix.chars().flat_map(escaped).flatten().chain(":*".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Secret, SecretSource, Span};

    fn settings(url: SecretSource, ca_file: Option<&str>) -> Settings {
        Settings {
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
    fn user_password_and_database_are_shown_to_whom_they_are_meant_for() {
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
    fn an_address_is_read_again_and_becomes_no_other_kind() {
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
    fn pattern_means_the_prefix_as_it_is() {
        for (prefix, expected) in
            [("warmkey", "warmkey:*"), ("w*", r"w\*:*"), (r"a?[b-c]^\", r"a\?\[b-c\]\^\\:*")]
        {
            assert_eq!(pattern(prefix), expected, "{prefix}");
        }
    }
}
