//! Distinguishes requests of web pages in a browser from requests of programs. If no token is
//! required, a page could otherwise do everything that its user's programs may do.

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{Request, Uri};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a browser may have sent the request for a page. Either the request's headers show a
/// page, or the request names this machine by a name that the page's owner may have chosen.
pub fn may_be_of_a_page<B>(request: &Request<B>) -> bool {
    is_of_a_page(request.headers()) || !is_for_this_machine(request.uri(), request.headers())
}

/// Whether the headers show that a page sent the request. Even a page of this listener's own origin
/// counts, because another site's name may lead to this machine. If a token is required, no page
/// knows it.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    let is_fetched = headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "none");
    headers.contains_key(ORIGIN) || is_fetched
}

/// Whether a request names this machine by an address or as `localhost`. Any other name may lead
/// here only since a page was loaded (DNS rebinding). Such a page's GET to its own origin has no
/// `Origin` header. A request that names no host is not from a browser.
pub fn is_for_this_machine(uri: &Uri, headers: &HeaderMap) -> bool {
    let is_local = |authority: &str| {
        authority.parse().is_ok_and(|authority: Authority| is_unnamed(authority.host()))
    };
    let is_local_value = |value: &HeaderValue| value.to_str().is_ok_and(is_local);
    uri.authority().is_none_or(|authority| is_unnamed(authority.host()))
        && headers.get_all(HOST).iter().all(is_local_value)
}

fn is_unnamed(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        may_be_of_a_page(&request.body(()).unwrap())
    }

    #[test]
    fn program_asks_for_an_address_and_a_page_perhaps_for_a_name() {
        for host in
            ["127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]", "localhost", "LocalHost:1"]
        {
            assert!(!asked("/v1/models", &[("host", host)]), "{host}");
            assert!(!asked(&format!("http://{host}/v1/models"), &[]), "{host} over HTTP/2");
            assert!(asked("/v1/models", &[("host", host), ("origin", "http://x")]), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.x"] {
            assert!(asked("/v1/models", &[("host", host)]), "{host}");
            assert!(asked(&format!("http://{host}/v1/models"), &[]), "{host} over HTTP/2");
            assert!(asked(&format!("http://{host}/"), &[("host", "127.0.0.1")]), "{host}");
        }
        assert!(asked("/", &[("host", "")]) && asked("/", &[("host", "a b")]));
        assert!(!asked("/", &[]), "HTTP/1.0");
        assert!(!asked("/", &[("sec-fetch-site", "none")]));
        assert!(asked("/", &[("sec-fetch-site", "same-origin")]));
    }
}
