//! Reads the addresses of upstreams and proxies. An address that parsers could read in different
//! ways is refused, because traffic must go only where the configuration says.
//!
//! No error repeats an address, because the address may hold a password.

use reqwest::Url;

/// Reads `base_url`.
pub fn base_url(text: &str) -> Result<Url, String> {
    let url =
        parse(text).ok_or("must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")?;
    if text.contains(['@', '?', '#']) {
        return Err("must hold no user, password, query or fragment".into());
    }
    let is_relative = |segment: &str| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        matches!(segment.as_str(), "." | "..")
    };
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path).trim_end_matches('/');
    if path.split('/').any(is_relative) {
        return Err("must hold no . or .. in its path".into());
    }
    if !path.is_empty() && path.split('/').any(str::is_empty) {
        return Err("must hold no empty part in its path".into());
    }
    Ok(url)
}

/// Checks `proxy`.
pub fn proxy(text: &str) -> Result<(), String> {
    const FORM: &str = "must be http://[USER:PASSWORD@]HOST[:PORT], or https:// in its place";
    let url = parse(text).ok_or(FORM)?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !is_bare || url.password().is_some() && url.username().is_empty() {
        return Err(FORM.into());
    }
    Ok(())
}

/// An http:// or https:// address that no parser reads in another way than it is written.
fn parse(text: &str) -> Option<Url> {
    let (scheme, rest) = text.split_once("://")?;
    let is_http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    // The parser drops tabs and line ends, takes a backslash for a slash, and any number of
    // slashes before a host.
    let is_plain = text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '\\');
    let url = Url::parse(text).ok()?;
    let is_whole = is_http && is_plain && !rest.starts_with(['/', '?', '#']) && url.has_host();
    (is_whole && url.port() != Some(0)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_is_understood_entirely_or_refused() {
        for (text, expected) in [
            ("http://h", "http://h/"),
            ("HTTPS://api.example.com:8443/v1/", "https://api.example.com:8443/v1/"),
            ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
            ("http://[::1]:9/v1", "http://[::1]:9/v1"),
        ] {
            assert_eq!(base_url(text).map(|url| url.to_string()), Ok(expected.to_owned()));
        }
        for wrong in [
            "",
            "h",
            "h:80",
            "//h",
            "ftp://h",
            "socks5://h",
            "ws://h",
            "http:h",
            "http:/h",
            "http:///h",
            "http://",
            "http://:80",
            "http://h:0",
            "http://h:99999",
            "http://h:x",
            "http:\\\\h",
            "http://h\\v1",
            " http://h",
            "http://h ",
            "http://h/v 1",
            "http://h\n/v1",
            "http://u:p@h",
            "http://@h",
            "http://h?",
            "http://h/v1?a=b",
            "http://h/v1#a",
            "http://h/v1/../v2",
            "http://h/./v1",
            "http://h/%2E%2e/v1",
            "http://h//v1",
            "http://h/a//b",
        ] {
            assert!(base_url(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn proxy_is_understood_entirely_or_refused() {
        for good in
            ["http://h:3128", "https://h", "http://u:p@h:3128/", "http://u@h", "http://[::1]:1"]
        {
            assert_eq!(proxy(good), Ok(()), "{good}");
        }
        for wrong in [
            "",
            "h:3128",
            "socks5://h:1080",
            "socks4://h",
            "ftp://h",
            "http://h/path",
            "http://h?a",
            "http://h#a",
            "http://:p@h",
            "http://",
            "http://h:0",
            "http://h\\x",
        ] {
            assert!(proxy(wrong).is_err_and(|why| !why.contains("socks")), "{wrong}");
        }
    }
}
