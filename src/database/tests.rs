//! Tests of the addresses of a ledger, and of the errors for other texts.

use super::*;

#[test]
fn address_is_read_and_shown_without_its_password() {
    let parse = |url: &str| {
        DatabaseAddress::parse(&Secret::new(url))
            .map(|address| address.map(|address| address.to_string()))
    };
    for (url, shown) in [
        ("sqlite:warmkey.db", "the file warmkey.db"),
        ("sqlite:///var/lib/ledger.db", "the file /var/lib/ledger.db"),
        ("sqlite:/var/lib/ledger.db", "the file /var/lib/ledger.db"),
        ("postgres://u:canary@h/d", "PostgreSQL at h:5432, database d"),
        ("postgresql://u:canary@h:1", "PostgreSQL at h:1, database u"),
    ] {
        assert_eq!(parse(url), Ok(Some(shown.into())), "{url}");
    }
    assert_eq!(parse("none:"), Ok(None));
    for wrong in [
        "",
        "none",
        "warmkey.db",
        "sqlite:",
        "sqlite::memory:",
        "mysql://u:canary@h/d",
        "postgres://u:canary@h:port/d",
    ] {
        let fault = parse(wrong).expect_err(wrong);
        assert!(!fault.contains("canary") && !fault.is_empty(), "{wrong}: {fault}");
    }
    let address = DatabaseAddress::parse(&Secret::new("postgres://u:canary@h/d")).expect("a URL");
    assert!(!format!("{address:?}").contains("canary"));
}
