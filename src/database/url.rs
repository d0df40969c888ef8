//! Reads the address of a PostgreSQL. The address alone says where the ledger is and what is
//! trusted: an unknown parameter is refused, and the environment changes nothing.

use reqwest::Url;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

const FORM: &str = "is no postgres://[USER:PASSWORD@]HOST[:5432]/DATABASE";
const PORT: u16 = 5432;
/// Parameters that are understood, those that name a file first.
const FILES: [&str; 7] =
    ["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];
const ROOTS: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const OTHERS: [&str; 10] = [
    "sslmode",
    "ssl-mode",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];
/// Variables that the driver reads, and that no address can take back.
const VARIABLES: [(&str, &str); 4] = [
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGOPTIONS", "options"),
];

/// Reads an address. No fault repeats it, because it may hold a password.
pub fn options(text: &str, variable: impl Fn(&str) -> bool) -> Result<PgConnectOptions, String> {
    let url = Url::parse(text).map_err(|_| FORM)?;
    let asked: Vec<_> = url.query_pairs().collect();
    let has = |names: &[&str]| asked.iter().any(|(name, _)| names.contains(&&**name));
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    if !has_host && !has(&["host", "hostaddr"]) {
        return Err(FORM.into());
    }
    let is_plain = text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '\\');
    if !is_plain || url.port() == Some(0) || url.fragment().is_some() {
        return Err(FORM.into());
    }
    for (name, value) in &asked {
        let is_options = name == "options" || name.starts_with("options[") && name.ends_with(']');
        if FILES.contains(&&**name) {
            is_file(name, value)?;
        } else if !is_options && !OTHERS.contains(&&**name) {
            let known = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "options"];
            return Err(format!(
                "has a parameter that is not known: may have {}",
                known.join(", ")
            ));
        }
    }
    let mut said = vec![
        ("host", has_host),
        ("port", url.port().is_some()),
        ("dbname", !url.path().trim_start_matches('/').is_empty()),
        ("user", !url.username().is_empty()),
        ("password", url.password().is_some()),
    ];
    said.retain(|(_, is_said)| *is_said);
    for (name, _) in &asked {
        let name = canonical_name(name);
        if said.iter().any(|(other, _)| *other == name) {
            return Err(format!("{name}: is given twice"));
        }
        said.push((name, true));
    }
    if let Some((variable, parameter)) = VARIABLES.into_iter().find(|(name, _)| variable(name)) {
        return Err(format!(
            "does not go with {variable} in the environment: write {parameter}= in the address"
        ));
    }
    let mode = "sslmode: must be disable, allow, prefer, require, verify-ca or verify-full";
    let mut options: PgConnectOptions =
        text.parse().map_err(|_| if has(&["sslmode", "ssl-mode"]) { mode } else { FORM })?;
    if url.port().is_none() && !has(&["port"]) {
        options = options.port(PORT);
    }
    if url.path().trim_start_matches('/').is_empty() && !has(&["dbname"]) {
        let own = options.get_username().to_owned();
        options = options.database(&own);
    }
    let (has_mode, has_root) = (has(&["sslmode", "ssl-mode"]), has(&ROOTS));
    if !has_mode {
        // If an address names an authority, the server must be verified.
        options =
            options.ssl_mode(if has_root { PgSslMode::VerifyFull } else { PgSslMode::Prefer });
    }
    let verifies = matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    if has_root && !verifies {
        return Err("sslmode: must be verify-ca or verify-full beside sslrootcert".into());
    }
    Ok(options)
}

/// The usual name of a parameter, which may have several.
fn canonical_name(name: &str) -> &str {
    match name {
        "ssl-mode" => "sslmode",
        "ssl-root-cert" | "ssl-ca" => "sslrootcert",
        "ssl-cert" => "sslcert",
        "ssl-key" => "sslkey",
        "hostaddr" => "host",
        name => name,
    }
}

/// A certificate or key is a file that can be read, or stands in the address.
fn is_file(name: &str, value: &str) -> Result<(), String> {
    if value.contains("-----BEGIN") {
        return Ok(());
    }
    let found = std::fs::File::open(value).map(drop);
    found.map_err(|error| format!("{name}: must name a file that can be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PgConnectOptions, String> {
        options(text, |_| false)
    }

    #[test]
    fn address_says_everything() {
        let options = read("postgres://u:canary@h/d").expect("it is one");
        assert_eq!(
            (options.get_host(), options.get_port(), options.get_database()),
            ("h", 5432, Some("d"))
        );
        let options = read("postgres://u:canary@h:1").expect("it is one");
        assert_eq!((options.get_port(), options.get_database()), (1, Some("u")));
        for good in [
            "postgres://h/d?sslmode=verify-full",
            "postgresql://[::1]:5433/d?application_name=x&options[statement_timeout]=5s",
            "postgres:///d?host=/var/run/postgresql",
        ] {
            assert!(read(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn address_that_is_not_understood_entirely_is_refused() {
        for wrong in [
            "postgres://",
            "postgres:///canary",
            "postgres://u:canary@h:port/d",
            "postgres://u:canary@h:0/d",
            "postgres://u:canary@h/d#x",
            "postgres://u:canary@h /d",
            "postgres://u:canary@h\\d",
            "postgres://u:canary@h/d?sslmod=canary",
            "postgres://u:canary@h/d?sslmode=canary",
            "postgres://u:canary@h/d?sslmode=",
            "postgres://u:canary@h/d?SSLMODE=require",
            "postgres://u:canary@h/d?sslrootcert=/nowhere/at/all",
            "postgres://u:canary@h/d?port=canary",
        ] {
            let fault = read(wrong).expect_err(wrong);
            assert!(!fault.contains("canary"), "{wrong}: {fault}");
        }
    }

    #[test]
    fn root_certificate_means_that_the_server_is_verified() {
        const ROOT: &str = "-----BEGIN%20CERTIFICATE-----";
        let with = |root: &str, rest: &str| read(&format!("postgres://h/d?{root}={ROOT}{rest}"));
        for root in ROOTS {
            let mode = with(root, "").expect(root).get_ssl_mode();
            assert!(matches!(mode, PgSslMode::VerifyFull), "{root}: {mode:?}");
            let mode = with(root, "&sslmode=verify-ca").expect(root).get_ssl_mode();
            assert!(matches!(mode, PgSslMode::VerifyCa), "{root}: {mode:?}");
            for weaker in ["disable", "allow", "prefer", "require"] {
                let fault = with(root, &format!("&ssl-mode={weaker}")).expect_err(weaker);
                assert!(fault.contains("verify-full"), "{root} {weaker}: {fault}");
            }
        }
        let mode = read("postgres://h/d").expect("it is one").get_ssl_mode();
        assert!(matches!(mode, PgSslMode::Prefer), "{mode:?}");
    }

    #[test]
    fn parameter_said_twice_is_refused() {
        for (wrong, twice) in [
            ("postgres://h/d?host=canary", "host"),
            ("postgres://h/d?hostaddr=127.0.0.1", "host"),
            ("postgres:///d?host=canary&hostaddr=127.0.0.1", "host"),
            ("postgres://h/d?sslmode=verify-full&sslmode=disable", "sslmode"),
            ("postgres://h/d?sslmode=verify-full&ssl-mode=disable", "sslmode"),
            ("postgres://h:1/d?port=2", "port"),
            ("postgres://h/d?dbname=canary", "dbname"),
            ("postgres://u:canary@h/d?user=v", "user"),
            ("postgres://u:canary@h/d?password=w", "password"),
            ("postgres://h/d?options[a]=canary&options[a]=2", "options[a]"),
        ] {
            let fault = read(wrong).expect_err(wrong);
            assert!(fault == format!("{twice}: is given twice"), "{wrong}: {fault}");
        }
        let good = "postgres://h/d?options[a]=1&options[b]=2&user=u&password=w&port=1";
        assert!(read(good).is_ok());
    }

    #[test]
    fn environment_adds_nothing() {
        for (variable, _) in VARIABLES {
            let fault = options("postgres://h/d", |name| name == variable).expect_err(variable);
            assert!(fault.contains(variable), "{fault}");
        }
    }
}
