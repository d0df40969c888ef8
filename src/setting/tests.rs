//! Tests of sizes, spans and secrets, as operators write them.

use super::*;
use serde::Deserialize;

/// One option of each kind, as a file sets it.
#[derive(Debug, Deserialize)]
struct Options {
    size: Option<Size>,
    span: Option<Span>,
    secret: Option<SecretSource>,
}

fn read(line: &str) -> Result<Options, String> {
    toml::from_str(line).map_err(|error: toml::de::Error| error.message().to_owned())
}

#[test]
fn measure_is_a_whole_number_with_its_unit() {
    assert_eq!(measure("64MiB", SIZES), Some(64 << 20));
    assert_eq!(measure("250ms", SPANS), Some(250));
    assert_eq!(measure("720h", SPANS), Some(720 * 3_600_000));
    for wrong in ["", "64", "MiB", "1.5h", "-1s", "5 s", "99999999999999999999s", "64mib"] {
        assert_eq!(measure(wrong, SIZES), None, "{wrong}");
        assert_eq!(measure(wrong, SPANS), None, "{wrong}");
    }
}

#[test]
fn secret_is_never_printed() {
    let secret = Secret::new("sk-canary");
    let source = SecretSource::Text(secret.clone());
    assert!(!format!("{secret:?}{source:?}{source}").contains("canary"));
}

#[test]
fn secret_missing_or_empty_is_reported_by_source_only() {
    assert_eq!(
        SecretSource::Env("WARMKEY_NO_SUCH".into()).read().expect_err("unset"),
        "environment variable WARMKEY_NO_SUCH is not set"
    );
    assert_eq!(
        SecretSource::Text(Secret::new("")).read().expect_err("empty"),
        "the secret in the file is empty"
    );
}

#[test]
fn units_are_those_of_the_reference() {
    for (text, bytes) in [("3B", 3), ("3KiB", 3 << 10), ("3MiB", 3 << 20), ("3GiB", 3 << 30)] {
        let size = read(&format!("size = {text:?}")).unwrap().size.expect(text);
        assert_eq!((size, size.bytes()), (Size(bytes), bytes as usize), "{text}");
    }
    for (text, ms) in
        [("3ms", 3), ("3s", 3_000), ("3m", 180_000), ("3h", 10_800_000), ("3d", 259_200_000)]
    {
        let span = read(&format!("span = {text:?}")).unwrap().span.expect(text);
        assert_eq!(span, Span(Duration::from_millis(ms)), "{text}");
    }
}

#[test]
fn measure_has_an_upper_limit() {
    assert!(read("size = \"17179869183GiB\"").is_ok());
    assert!(
        read("size = \"17179869184GiB\"").is_err_and(|why| why.contains("is no size")),
        "2^64 bytes"
    );
    let fault = |text: &str| read(&format!("span = {text:?}")).map(|_| ()).expect_err(text);
    assert!(fault("213503982335d").contains("is no span of time"), "2^64 milliseconds");
    for long in ["3651d", "87601h", "315360000001ms", "213503982334d"] {
        assert_eq!(
            fault(long),
            format!("\"{long}\" is too long: \"3650d\" is the longest span of time")
        );
    }
    assert!(read("span = \"3650d\"").is_ok() && read("span = \"0s\"").is_ok());
    assert!(fault("5").contains("is no span of time"));
}

#[test]
fn secret_has_one_source() {
    let source = |text: &str| {
        read(&format!("secret = {text}")).map(|options| options.secret.expect(text).to_string())
    };
    assert_eq!(source(r#""canary""#).unwrap(), "in the file");
    assert_eq!(source(r#"{ env = "NAME" }"#).unwrap(), "in environment variable NAME");
    assert_eq!(source(r#"{ file = "/some/path" }"#).unwrap(), "in /some/path");
    for both in [r#"{ env = "canary", file = "canary" }"#, r#"{ file = "canary", env = "canary" }"#]
    {
        assert_eq!(source(both).expect_err(both), "a secret has one source: env or file");
    }
    for none in ["{}", r#"{ path = "canary" }"#, r#"{ ENV = "canary" }"#] {
        assert_eq!(source(none).expect_err(none), format!("a secret is {SECRET}"));
    }
}

/// A secret in a file loses the line ends that an editor or `echo` appends, and nothing else.
#[test]
fn secret_in_a_file_loses_trailing_line_ends_only() {
    let path = std::env::temp_dir().join(format!("warmkey-setting-{}", std::process::id()));
    let source = SecretSource::File(path.clone());
    let kept = |text: &str| {
        std::fs::write(&path, text).expect("the temporary folder can be written");
        source.read().map(|secret| secret.expose().to_owned())
    };
    for (text, secret) in [("canary", "canary"), ("canary\n", "canary"), ("canary\r\n\n", "canary")]
    {
        assert_eq!(kept(text).as_deref(), Ok(secret), "{text:?}");
    }
    assert_eq!(kept(" two\nlines \n").as_deref(), Ok(" two\nlines "));
    for empty in ["", "\n", "\r\n"] {
        assert_eq!(
            kept(empty).expect_err(empty),
            format!("the secret in {} is empty", path.display())
        );
    }
    assert_eq!(source.file(), Some(path.as_path()));
    assert_eq!(SecretSource::Env("NAME".into()).file(), None);
    std::fs::remove_file(&path).expect("it is there");
    let fault = source.read().expect_err("it is gone");
    assert!(fault.starts_with(&format!("cannot read {}: ", path.display())), "{fault}");
}

#[test]
fn secret_that_no_header_carries_is_refused() {
    let shown = |text: &str| SecretSource::Text(Secret::new(text)).read_shown().map(|_| ());
    for fine in ["wk-alice", "two words", "\u{e9}"] {
        assert_eq!(shown(fine), Ok(()), "{fine:?}");
    }
    let fault = "the secret in the file has a control character, or white space at an end";
    for wrong in
        ["canary\n", "\ncanary", " canary", "canary ", "can\tary", "can\0ary", "canary\u{7f}"]
    {
        assert_eq!(shown(wrong).expect_err(wrong), fault, "{wrong:?}");
    }
    assert_eq!(shown("").expect_err("empty"), "the secret in the file is empty");
}
