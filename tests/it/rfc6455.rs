//! Tests RFC 6455 to the letter, on both sides of the gateway: towards its clients and towards its
//! upstreams.
//!
//! The cases follow the Autobahn test suite. That suite cannot run here, because it sends text that
//! is not JSON.

use std::net::SocketAddr;

use crate::world::cluster::{Cluster, Running};
use crate::world::frames::{BINARY, CLOSE, End, PING, PONG, SIDES, Side, TEXT, open};
use crate::world::socket::Upstream;
use crate::world::waiting::{Budget, SOON, eventually, ms};

const LARGEST: u64 = 16 << 20;

async fn gateway() -> (Running, Upstream, SocketAddr) {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let address = cluster.address();
    (cluster, upstream, address)
}

/// Text that every client may send.
fn json(text: &str) -> Vec<u8> {
    format!("{text:?}").into_bytes()
}

/// Checks that `bytes` close one end with this code, and that the other end learns only that the
/// connection is over.
async fn breaks(address: SocketAddr, upstream: &Upstream, side: Side, bytes: &[u8], code: u16) {
    let what = format!("{side:?}: {:02x?}", &bytes[..bytes.len().min(16)]);
    let (mut here, mut there) = open(address, upstream, side).await;
    // The frame before the bytes passes, and the frames after them do not.
    here.frame(TEXT, &json("before")).await;
    here.send(bytes).await;
    here.frame(TEXT, &json("after")).await;
    assert_eq!(there.next().await, (TEXT, json("before")), "{what}");
    assert_eq!(here.closed().await, code, "{what}");
    there.frame(CLOSE, &1001_u16.to_be_bytes()).await;
    assert_eq!(there.closed().await, 1001, "{what}");
}

#[tokio::test]
async fn frames_that_must_not_be_are_a_breach_of_protocol() {
    let (cluster, upstream, address) = gateway().await;
    for side in SIDES {
        let other = if side == Side::Client { Side::Upstream } else { Side::Client };
        let reserved_bits = [0xc0, 0xa0, 0x90, 0xf0]
            .iter()
            .flat_map(|bits| [0x1, 0x2, 0x8, 0x9].map(|kind| bits | kind));
        let reserved_kinds = (0x83..=0x87).chain(0x8b..=0x8f);
        let mut wrong: Vec<_> = reserved_bits
            .chain(reserved_kinds)
            .map(|first| side.frame(first, &json("x")))
            .collect();
        wrong.extend([
            // This frame is masked, or not masked, like one of the other side.
            other.frame(TEXT, &json("x")),
            other.frame(PING, b""),
            // These are control frames in fragments, or control frames that are too long.
            side.frame(PING & 0x0f, b""),
            side.frame(PONG & 0x0f, b""),
            side.frame(CLOSE & 0x0f, b""),
            side.frame(PING, &[0; 126]),
            side.frame(PONG, &[0; 126]),
            side.frame(CLOSE, &[[3, 232].to_vec(), vec![b'x'; 124]].concat()),
            // This is a continuation of nothing, or a message inside another one.
            side.frame(0x80, &json("x")),
            side.frame(0x00, &json("x")),
            [side.frame(0x01, b"\""), side.frame(TEXT, &json("x"))].concat(),
            [side.frame(0x01, b"\""), side.frame(BINARY & 0x0f, b"x")].concat(),
            // This is half a close code.
            side.frame(CLOSE, &[3]),
        ]);
        for bytes in wrong {
            breaks(address, &upstream, side, &bytes, 1002).await;
        }
    }
    cluster.replica().shows("warmkey_active_websockets", 0.0).await;
}

#[tokio::test]
async fn text_that_is_no_utf8_is_a_breach_of_its_own() {
    let (_cluster, upstream, address) = gateway().await;
    let invalid: [&[u8]; 10] = [
        b"\xff\xfe",
        b"\x80",
        // These are an overlong form, a surrogate, a number beyond the last character, and a
        // character cut short.
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xe2\x82",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80\x65\x64\x69\x74\x65\x64",
    ];
    for side in SIDES {
        for text in invalid {
            let quoted = [b"\"", text, b"\""].concat();
            breaks(address, &upstream, side, &side.frame(TEXT, &quoted), 1007).await;
            let (first, second) = quoted.split_at(quoted.len() / 2);
            let fragments =
                [side.frame(0x01, first), side.frame(0x00, b""), side.frame(0x80, second)].concat();
            breaks(address, &upstream, side, &fragments, 1007).await;
            let close = [&1000_u16.to_be_bytes()[..], text].concat();
            breaks(address, &upstream, side, &side.frame(CLOSE, &close), 1007).await;
        }
    }
}

#[tokio::test]
async fn message_that_is_too_large_is_refused_by_its_length() {
    let (cluster, upstream, address) = gateway().await;
    let half = vec![b' '; (LARGEST / 2) as usize];
    for side in SIDES {
        // An upstream's event may hold pictures, so its limit is higher.
        let most = if side == Side::Client { LARGEST } else { 16 * LARGEST };
        for length in [most + 1, 1 << 32, u64::MAX >> 1, u64::MAX] {
            breaks(address, &upstream, side, &side.announced(TEXT, length, b""), 1009).await;
        }
        if side == Side::Client {
            let fragments =
                [side.frame(0x01, &half), side.frame(0x00, &half), side.frame(0x80, b" ")].concat();
            breaks(address, &upstream, side, &fragments, 1009).await;
        }
    }
    // An announced message takes no memory before its bytes come.
    let before = cluster.replica().process().resident();
    let mut waiting = Vec::new();
    for side in [SIDES; 16].concat() {
        let (mut here, there) = open(address, &upstream, side).await;
        here.send(&side.announced(TEXT, LARGEST, b"\"")).await;
        waiting.push((here, there));
    }
    // Each ping behind the announcement is answered, so that the announcement was read.
    for (_, there) in &mut waiting {
        there.frame(PING, b"").await;
        assert_eq!(there.next().await, (PONG, Vec::new()));
    }
    let more = cluster.replica().process().resident().saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes for 32 announced messages of 16 MiB");
}

#[tokio::test]
async fn message_passes_whole_in_any_pieces() {
    let (_cluster, upstream, address) = gateway().await;
    let text = json("κόσμε, 你好, 𝄞");
    for side in SIDES {
        let (mut here, mut there) = open(address, &upstream, side).await;
        // Each byte has a fragment of its own, even within a character. An empty fragment and
        // control frames lie between them.
        let mut fragments = side.frame(0x01, b"");
        for byte in &text {
            fragments.extend(
                [side.frame(0x00, &[*byte]), side.frame(PONG, b"unasked"), side.frame(0x00, b"")]
                    .concat(),
            );
        }
        fragments.extend([side.frame(PING, b"between"), side.frame(0x80, b"")].concat());
        for piece in fragments.chunks(7) {
            here.send(piece).await;
        }
        assert_eq!(there.next().await, (TEXT, text.clone()), "{side:?}");
        assert_eq!(here.next().await, (PONG, b"between".to_vec()), "{side:?}");
        // The bytes are sent one at a time.
        for byte in side.frame(TEXT, &text) {
            here.send(&[byte]).await;
        }
        assert_eq!(there.next().await, (TEXT, text.clone()), "{side:?}");
        // The lengths are both ends of the range of each of the three encodings.
        for length in [2, 125, 126, 127, 128, 65_535, 65_536, 1 << 20] {
            let payload = format!("\"{}\"", "x".repeat(length - 2)).into_bytes();
            here.frame(TEXT, &payload).await;
            assert!(there.next().await == (TEXT, payload), "{side:?}: {length} bytes");
        }
    }
}

#[tokio::test]
async fn ping_is_answered_by_the_hop_that_it_was_for() {
    let (_cluster, upstream, address) = gateway().await;
    for side in SIDES {
        let (mut here, mut there) = open(address, &upstream, side).await;
        for payload in [&b""[..], b"x", &[0xfe; 125]] {
            here.frame(PING, payload).await;
            assert_eq!(here.next().await, (PONG, payload.to_vec()), "{side:?}");
        }
        // Of many pings, at least the last one is answered.
        let pings: Vec<u8> = (0..10).flat_map(|number| side.frame(PING, &[number])).collect();
        here.send(&pings).await;
        let mut earlier = 0;
        while here.next().await != (PONG, vec![9]) {
            earlier += 1;
            assert!(earlier < 10, "{side:?}: ten pings have at most ten pongs");
        }
        here.frame(PONG, b"unasked").await;
        // The other end has seen none of these frames.
        here.frame(TEXT, &json("x")).await;
        assert_eq!(there.next().await, (TEXT, json("x")), "{side:?}");
    }
}

#[tokio::test]
async fn peer_that_pings_and_does_not_read_is_held_back() {
    let (cluster, upstream, address) = gateway().await;
    for side in SIDES {
        let (mut here, _there) = open(address, &upstream, side).await;
        let pings = side.frame(PING, &[b'p'; 125]).repeat(1000);
        let before = cluster.replica().process().resident();
        let mut sent = 0;
        eventually(SOON, "nothing more is taken", async || {
            match tokio::time::timeout(ms(500), here.send(&pings)).await {
                Ok(()) => {
                    sent += pings.len();
                    assert!(sent < 64 << 20, "{side:?}: {sent} bytes of pings were taken");
                    None
                }
                Err(_) => Some(()),
            }
        })
        .await;
        let more = cluster.replica().process().resident().saturating_sub(before);
        assert!(more < 4 << 20, "{side:?}: {more} bytes for unread answers");
    }
}

async fn says(end: &mut End, code: u16, reason: &str) {
    end.frame(CLOSE, &[&code.to_be_bytes()[..], reason.as_bytes()].concat()).await;
}

#[tokio::test]
async fn close_is_answered_and_carried_to_the_other_end() {
    let (_cluster, upstream, address) = gateway().await;
    let reason = "é".repeat(61);
    for side in SIDES {
        for code in
            [1000_u16, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999]
        {
            let (mut here, mut there) = open(address, &upstream, side).await;
            let word = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
            // The frame after the close is ignored. Sent later, it would meet a closed connection
            // and a reset.
            here.send(&[side.frame(CLOSE, &word), side.frame(TEXT, &json("after"))].concat()).await;
            assert_eq!(here.closed().await, code, "{side:?}");
            assert_eq!(there.next().await, (CLOSE, word), "{side:?}");
            says(&mut there, code, "").await;
            there.ends().await;
        }
        let (mut here, mut there) = open(address, &upstream, side).await;
        here.frame(CLOSE, b"").await;
        assert_eq!(
            (here.closed().await, there.next().await),
            (1005, (CLOSE, Vec::new())),
            "{side:?}"
        );
    }
}

#[tokio::test]
async fn close_code_that_must_not_be_sent_is_not_passed_on() {
    let (_cluster, upstream, address) = gateway().await;
    for side in SIDES {
        // 1002 is allowed, but concerns only this hop: the other end has broken nothing.
        for code in [0, 999, 1002, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            let (mut here, mut there) = open(address, &upstream, side).await;
            says(&mut here, code, "because").await;
            assert_eq!(here.closed().await, 1002, "{side:?}: {code}");
            says(&mut there, 1000, "").await;
            assert_eq!(there.closed().await, 1011, "{side:?}: {code}");
        }
    }
}

#[tokio::test]
async fn peer_that_does_not_answer_a_close_is_not_waited_for() {
    let (_cluster, upstream, address) = gateway().await;
    for side in SIDES {
        let (mut here, mut there) = open(address, &upstream, side).await;
        says(&mut here, 1001, "").await;
        assert_eq!(there.next().await, (CLOSE, 1001_u16.to_be_bytes().to_vec()), "{side:?}");
        let budget = Budget::begin(ms(5_000));
        // The other end does not notice, and its messages still pass.
        there.frame(TEXT, &json("after")).await;
        there.left().await;
        budget.holds("the end of a connection whose close is not answered");
        assert_eq!(here.closed().await, 1001, "{side:?}");
    }
}
