//! Asks the Sentinels which Redis is the primary.
//!
//! All Sentinels are asked at once, so that a dead or stopped one does not delay the others. The
//! majority counts. The caller tests whether the named Redis takes writes.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::cmd;

use super::address::{Address, Host};
use super::dial::{Dialer, Shown};
use super::fault::StoreFault;

/// The primary that the Sentinels name.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub host: Host,
    /// Whether most of all Sentinels name this primary. Those that answered may be a minority that
    /// is cut off.
    pub by_most: bool,
}

/// The primary that most of the answering Sentinels name.
pub async fn primary(
    dialer: &Dialer,
    address: &Address,
    master: &str,
) -> Result<Named, StoreFault> {
    let mut asked: FuturesUnordered<_> = address
        .hosts
        .iter()
        .map(async |sentinel| {
            let answer = tokio::time::timeout(
                dialer.connect_timeout(),
                ask(dialer, address, sentinel, master),
            )
            .await;
            answer.unwrap_or_else(|_| {
                Err(StoreFault::Unready(format!("the Sentinel at {sentinel}: {}", dialer.late())))
            })
        })
        .collect();
    let mut votes: Vec<(Host, usize)> = Vec::new();
    let mut last = StoreFault::Away;
    while let Some(answer) = asked.next().await {
        let named = match answer {
            Ok(named) => named,
            Err(fault) => {
                last = fault;
                continue;
            }
        };
        let place = votes.iter().position(|(host, _)| *host == named).unwrap_or_else(|| {
            votes.push((named, 0));
            votes.len() - 1
        });
        votes[place].1 += 1;
        if votes[place].1 * 2 > address.hosts.len() {
            break;
        }
    }
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
    most.map(|(host, votes)| Named { host, by_most: votes * 2 > address.hosts.len() }).ok_or(last)
}

async fn ask(
    dialer: &Dialer,
    address: &Address,
    sentinel: &Host,
    master: &str,
) -> Result<Host, StoreFault> {
    // The user and password belong to Redis. A Sentinel gets them only if it requires
    // authentication.
    let mut connection = dialer.dial(address, sentinel, Shown::Nothing).await?;
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let mut answer = question.query_async(&mut connection).await.map_err(StoreFault::from);
    let wants_password =
        answer.as_ref().is_err_and(|fault| fault.code().as_deref() == Some("NOAUTH"));
    if let (true, Some(password)) = (wants_password, &address.password) {
        let mut greeting = cmd("AUTH");
        let _: () =
            greeting.arg(&address.user).arg(password.expose()).query_async(&mut connection).await?;
        answer = question.query_async(&mut connection).await.map_err(StoreFault::from);
    }
    let named: Option<(String, u16)> = answer?;
    let (name, port) = named.ok_or_else(|| {
        StoreFault::Unready(format!("the Sentinel at {sentinel} knows no master named {master}"))
    })?;
    Ok(Host { name, port })
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::fake::Fake;
    use super::super::*;
    use super::*;
    use crate::setting::Secret;

    const NAMED: &str = "*2\r\n$8\r\n10.0.0.1\r\n$4\r\n6379";

    fn settings(credentials: &str, hosts: &[&Fake], timeout: Duration) -> StoreSettings {
        let hosts: Vec<String> =
            hosts.iter().map(|fake| fake.url().replace("redis://", "")).collect();
        let url = SecretSource::Text(Secret::new(format!(
            "redis-sentinel://{credentials}{}/main",
            hosts.join(",")
        )));
        StoreSettings { url, prefix: "w".into(), timeout: Span(timeout), ca_file: None }
    }

    async fn named_by(hosts: &[&Fake]) -> Result<Named, StoreFault> {
        let settings = settings(":canary@", hosts, Duration::from_millis(50));
        let dialer = Dialer::new(&settings).unwrap();
        primary(&dialer, &dialer.address().unwrap(), "main").await
    }

    #[tokio::test]
    async fn majority_decides_and_no_sentinel_delays() {
        let (right, silent) =
            (Fake::answering(|_, _| Some(NAMED)).await, Fake::answering(|_, _| None).await);
        let also = Fake::answering(|_, _| Some(NAMED)).await;
        let wrong = Fake::answering(|_, _| Some("*2\r\n$8\r\n10.0.0.2\r\n$4\r\n6379")).await;
        let ignorant = Fake::answering(|_, _| Some("*-1")).await;
        let expected = Host { name: "10.0.0.1".into(), port: 6379 };
        for (hosts, by_most) in [
            (&[&silent, &right][..], false),
            (&[&ignorant, &right, &silent], false),
            (&[&wrong, &right, &also], true),
            (&[&silent, &also, &right], true),
        ] {
            let began = Instant::now();
            assert_eq!(named_by(hosts).await.unwrap(), Named { host: expected.clone(), by_most });
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        }
        assert!(named_by(&[&ignorant, &silent]).await.is_err());
    }

    #[tokio::test]
    async fn password_is_sent_only_on_request() {
        let frank = Fake::answering(|_, _| Some(NAMED)).await;
        named_by(&[&frank]).await.unwrap();
        assert!(!frank.commands().contains(&"AUTH".to_owned()), "{:?}", frank.commands());
        let has_seen = std::sync::atomic::AtomicBool::new(false);
        let guarded = Fake::answering(move |_, command| match command {
            "AUTH" => {
                has_seen.store(true, std::sync::atomic::Ordering::Relaxed);
                Some("+OK")
            }
            _ if has_seen.load(std::sync::atomic::Ordering::Relaxed) => Some(NAMED),
            _ => Some("-NOAUTH Authentication required."),
        })
        .await;
        named_by(&[&guarded]).await.unwrap();
        assert_eq!(guarded.commands(), ["SENTINEL", "AUTH", "SENTINEL"]);
    }

    /// A primary that is cut off may still answer, and lose later writes. A minority of Sentinels
    /// ends no working connection.
    #[tokio::test]
    async fn primary_is_left_once_most_sentinels_name_another() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const LONG: Duration = Duration::from_secs(20);
        let redis =
            || Fake::answering(|_, command| Some(if command == "PTTL" { ":5" } else { "$-1" }));
        let (first, second) = (redis().await, redis().await);
        let named = |fake: &Fake| -> &'static str {
            let address = fake.url();
            let (_, port) = address.rsplit_once(':').unwrap();
            format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}", port.len()).leak()
        };
        let (old, new, is_over) = (named(&first), named(&second), Arc::new(AtomicBool::new(false)));
        let sentinel = |later: &'static str| {
            let is_over = Arc::clone(&is_over);
            Fake::answering(move |_, _| {
                Some(if is_over.load(Ordering::Relaxed) { later } else { old })
            })
        };
        let most = [sentinel(new).await, sentinel(old).await, sentinel(new).await];
        let few = [sentinel("*-1").await, sentinel(new).await, sentinel("*-1").await];
        let tasks = Tasks::new();
        let open = |sentinels: &[Fake; 3]| {
            let settings = settings("", &sentinels.each_ref(), Duration::from_millis(500));
            Store::in_redis(&settings, Arc::new(Metrics::new()), &tasks).unwrap()
        };
        let (led, kept) = (open(&most), open(&few));
        assert!(led.ready(LONG).await && kept.ready(LONG).await);
        assert_eq!((first.connections(), second.connections()), (2, 0));
        is_over.store(true, Ordering::Relaxed);
        let asked = few[1].commands().len();
        let until = async |is_so: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is_so() {
                assert!(began.elapsed() < LONG, "not within {LONG:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        until(&|| second.connections() == 1).await;
        until(&|| few[1].commands().len() > asked).await;
        // By the time of one more question, the store would have left its primary.
        assert!(led.ready(LONG).await);
        let asked = few[1].commands().len();
        until(&|| few[1].commands().len() > asked).await;
        assert!(
            kept.ready(Duration::ZERO).await
                && led.get(Name::Binding("s"), &mut Budget(LONG)).await.is_ok()
        );
        assert!(kept.get(Name::Binding("s"), &mut Budget(LONG)).await.is_ok());
        let gets = |fake: &Fake| fake.commands().iter().filter(|asked| *asked == "GET").count();
        assert_eq!((gets(&first), gets(&second), second.connections()), (1, 1, 1));
    }
}
