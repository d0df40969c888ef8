//! The address of the store: one Redis, a primary that Sentinels name, or a Cluster. Pure.
//!
//! The address is parsed here, because a list of several hosts is not a valid URL. Error texts
//! never repeat the input, which may contain a password.

use core::net::Ipv6Addr;
use std::fmt;

use percent_encoding::percent_decode_str;

use crate::setting::Secret;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The deployment of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// One Redis.
    One,
    /// The primary that Sentinels know under this name.
    Sentinel(String),
    Cluster,
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    pub name: String,
    pub port: u16,
}

/// A parsed `store.url`.
#[derive(Clone, Debug)]
pub struct Address {
    pub kind: StoreKind,
    pub is_tls: bool,
    /// The Redis, the Sentinels, or some nodes of the Cluster. Never empty.
    pub hosts: Vec<Host>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub database: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl fmt::Display for Address {
    /// Shows everything except the user and the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        match &self.kind {
            StoreKind::One => f.write_str("one Redis at ")?,
            StoreKind::Sentinel(name) => write!(f, "the Redis that Sentinels name {name}, at ")?,
            StoreKind::Cluster => f.write_str("a Redis Cluster at ")?,
        }
        f.write_str(&hosts.join(", "))?;
        f.write_str(if self.is_tls { ", through TLS" } else { "" })
    }
}

/// The accepted forms of an address, for error messages.
pub const FORMS: &str = "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], \
     redis-sentinel://[USER:PASSWORD@]HOST[:PORT],HOST/MASTER[/DATABASE] or \
     redis-cluster://[USER:PASSWORD@]HOST[:PORT],HOST; rediss in place of redis for TLS";

impl Address {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("must be {FORMS}"))?;
        let (is_tls, form) = match scheme.strip_prefix("rediss") {
            Some(form) => (true, form),
            None => {
                (false, scheme.strip_prefix("redis").ok_or_else(|| format!("must be {FORMS}"))?)
            }
        };
        let (rest, path) =
            rest.split_once('/').map_or((rest, None), |(rest, path)| (rest, Some(path)));
        if path.is_some_and(|path| path.contains('@')) {
            return Err(UNENCODED.into());
        }
        let (credentials, hosts) =
            rest.rsplit_once('@').map_or((None, rest), |(before, after)| (Some(before), after));
        let (kind, database, port) = match form {
            "" => (StoreKind::One, path, REDIS_PORT),
            "-cluster" if path.is_none_or(str::is_empty) => (StoreKind::Cluster, None, REDIS_PORT),
            "-cluster" => {
                return Err("a Cluster has no databases: nothing may follow the hosts".into());
            }
            "-sentinel" => {
                let path = path.unwrap_or_default();
                let (master, database) = path
                    .split_once('/')
                    .map_or((path, None), |(master, rest)| (master, Some(rest)));
                if master.is_empty() {
                    return Err(
                        "must name the Sentinels' master: redis-sentinel://HOST,HOST/MASTER".into(),
                    );
                }
                (StoreKind::Sentinel(decoded(master)?), database, SENTINEL_PORT)
            }
            _ => return Err(format!("must be {FORMS}")),
        };
        let hosts =
            hosts.split(',').map(|host| Host::parse(host, port)).collect::<Result<Vec<_>, _>>()?;
        if kind == StoreKind::One && hosts.len() > 1 {
            return Err("several hosts need redis-sentinel:// or redis-cluster://".into());
        }
        let (user, password) =
            match credentials.map(|both| both.split_once(':').unwrap_or((both, ""))) {
                None => (None, None),
                Some((_, "")) => {
                    return Err(
                        "the user has no password, or the password has no colon before it".into()
                    );
                }
                Some((user, password)) => (
                    Some(decoded(user)?).filter(|user| !user.is_empty()),
                    Some(Secret::new(decoded(password)?)),
                ),
            };
        let database = match database.filter(|text| !text.is_empty()) {
            None => 0,
            Some(text) => digits(text)
                .ok_or("the database must be a number from 0 to 65535, with nothing after it")?,
        };
        Ok(Self { kind, is_tls, hosts, user, password, database })
    }
}

impl Host {
    fn parse(text: &str, usual: u16) -> Result<Self, String> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, port)) if name.parse::<Ipv6Addr>().is_ok() => (name, port),
            Some(_) => return Err("the address in brackets must be IPv6".into()),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let is_named =
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
        if name.is_empty() || !is_named {
            return Err(
                "a host must be a name, an IPv4 address, or an IPv6 address in brackets".into()
            );
        }
        let port = match port.strip_prefix(':') {
            Some(port) => digits(port)
                .filter(|port| *port > 0)
                .ok_or("a port must be a number from 1 to 65535")?,
            None if port.is_empty() => usual,
            None => return Err("only a port may follow a host's bracket".into()),
        };
        Ok(Self { name: name.to_owned(), port })
    }
}

/// Parses a number that is written with digits alone.
fn digits(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Decodes percent-encoding, in which each `%` must encode a byte.
fn decoded(text: &str) -> Result<String, String> {
    let is_code = |after: &str| {
        let code = after.as_bytes().get(..2);
        code.is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_code) {
        return Err(ENCODING.into());
    }
    let text = percent_decode_str(text).decode_utf8().map_err(|_| ENCODING)?;
    Ok(text.into_owned())
}

const UNENCODED: &str = "a / in the user or password must be written %2F";
const ENCODING: &str =
    "a % must be followed by two hexadecimal digits: write %25 for the sign itself";

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> Host {
        Host { name: name.into(), port }
    }

    #[test]
    fn address_is_one_redis_sentinels_or_a_cluster() {
        let one = Address::parse("redis://h").unwrap();
        assert_eq!(
            (one.kind, one.is_tls, one.hosts, one.database),
            (StoreKind::One, false, vec![host("h", 6379)], 0)
        );
        let one = Address::parse("rediss://us%40er:p%3A%2Fw:1@[::1]:7000/3").unwrap();
        assert_eq!(
            (&one.kind, one.is_tls, &one.hosts, one.database),
            (&StoreKind::One, true, &vec![host("::1", 7000)], 3)
        );
        assert_eq!(
            (one.user.as_deref(), one.password.as_ref().map(Secret::expose)),
            (Some("us@er"), Some("p:/w:1"))
        );
        assert_eq!(one.to_string(), "one Redis at [::1]:7000, through TLS");
        let named = Address::parse("redis-sentinel://:pw@a,b:7001,[fe80::1]/main/2").unwrap();
        assert_eq!(named.hosts, [host("a", 26379), host("b", 7001), host("fe80::1", 26379)]);
        assert_eq!((&named.kind, named.database), (&StoreKind::Sentinel("main".into()), 2));
        assert_eq!(
            (named.user.as_deref(), named.password.as_ref().map(Secret::expose)),
            (None, Some("pw"))
        );
        let cluster = Address::parse("rediss-cluster://u:p@a:1,b:2/").unwrap();
        assert_eq!(
            (cluster.kind, cluster.is_tls, cluster.hosts),
            (StoreKind::Cluster, true, vec![host("a", 1), host("b", 2)])
        );
    }

    #[test]
    fn credentials_end_at_the_last_at_sign_and_split_at_the_first_colon() {
        for (text, user, password, name) in [
            ("redis://h", None, None, "h"),
            ("redis://u:p@h", Some("u"), Some("p"), "h"),
            ("redis://:p@h", None, Some("p"), "h"),
            ("redis://u:p@ss@h", Some("u"), Some("p@ss"), "h"),
            ("redis://u:p@@h", Some("u"), Some("p@"), "h"),
            ("redis://u:@p@h", Some("u"), Some("@p"), "h"),
            ("redis://u@x:p@h", Some("u@x"), Some("p"), "h"),
            ("redis://u:p:q@h", Some("u"), Some("p:q"), "h"),
            ("redis://u:p::q:@h", Some("u"), Some("p::q:"), "h"),
            ("redis://u:p@q:r@h", Some("u"), Some("p@q:r"), "h"),
            ("redis://u%3Ax:p%40q@h", Some("u:x"), Some("p@q"), "h"),
            ("redis://u:%2b%c2%A3%25@h", Some("u"), Some("+\u{a3}%"), "h"),
            ("redis://u:p#?,[]@h", Some("u"), Some("p#?,[]"), "h"),
            ("rediss-cluster://u:p@ss@a,b", Some("u"), Some("p@ss"), "a"),
            ("redis-sentinel://u:p@ss@a,b/main", Some("u"), Some("p@ss"), "a"),
        ] {
            let address = Address::parse(text).expect(text);
            let shown = (address.user.as_deref(), address.password.as_ref().map(Secret::expose));
            assert_eq!((shown, address.hosts[0].name.as_str()), ((user, password), name), "{text}");
        }
    }

    #[test]
    fn host_port_and_database_are_the_stated_or_default_ones() {
        for (text, port, database) in [
            ("redis://h/", 6379, 0),
            ("redis://h:1/0", 1, 0),
            ("redis://h:65535/15", 65_535, 15),
            ("redis://[::1]/7", 6379, 7),
            ("redis://my-redis_1.local./12", 6379, 12),
            ("redis-cluster://h/", 6379, 0),
            ("redis-sentinel://h/main", 26379, 0),
            ("redis-sentinel://h/main/", 26379, 0),
            ("rediss-sentinel://h:9/main/4", 9, 4),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!((address.hosts[0].port, address.database), (port, database), "{text}");
        }
        let named = Address::parse("rediss-sentinel://a,[::1]:2/my%20main").unwrap();
        assert_eq!(
            named.to_string(),
            "the Redis that Sentinels name my main, at a:26379, [::1]:2, through TLS"
        );
        let cluster = Address::parse("redis-cluster://u:canary@a:7,b").unwrap();
        assert_eq!(cluster.to_string(), "a Redis Cluster at a:7, b:6379");
    }

    #[test]
    fn error_never_repeats_the_address() {
        for (wrong, word) in [
            ("canary", "must be redis://"),
            ("http://u:canary@h", "must be redis://"),
            ("redis-canary://h", "must be redis://"),
            ("redis-sentinel-x://h/canary", "must be redis://"),
            ("redis://u:canary@h:port", "port"),
            ("redis://u:canary@h:0", "port"),
            ("redis://u:canary@h:+1", "port"),
            ("redis://u:canary@h:70000", "port"),
            ("redis://u:canary@", "host"),
            ("redis://u:canary@a b", "host"),
            ("redis://u:canary@h/canary", "database"),
            ("redis://u:canary@h/1/2", "database"),
            ("redis://u:canary@h?protocol=resp3", "host"),
            ("redis://u:ca/nary@h", "%2F"),
            ("redis://u:ca@na/ry@h", "%2F"),
            ("redis://u:@h", "password"),
            ("redis://@h", "password"),
            ("redis://u:canary@::1", "host"),
            ("redis://u:canary@h/65536", "database"),
            ("redis://u:canary@h/-1", "database"),
            ("redis-sentinel://u:canary@a/%zz", "%25"),
            ("redis-sentinel://u:canary@a/m/x", "database"),
            ("redis://u:canary%4@h", "%25"),
            ("redis://u:canary%zz@h", "%25"),
            ("redis://u:canary%ff@h", "%25"),
            ("redis://canary@h", "password"),
            ("redis://u:canary@[::1", "host"),
            ("redis://u:canary@[h]:1", "brackets"),
            ("redis://u:canary@[::1]1", "bracket"),
            ("redis://u:canary@a,b", "redis-cluster"),
            ("redis-sentinel://u:canary@a,b", "master"),
            ("redis-sentinel://u:canary@a,,b/m", "host"),
            ("redis-cluster://u:canary@a,b/1", "no databases"),
        ] {
            let fault = Address::parse(wrong).expect_err(wrong);
            assert!(
                fault.contains(word) && !fault.contains("canary") && !fault.contains('\n'),
                "{wrong}: {fault}"
            );
        }
    }
}
