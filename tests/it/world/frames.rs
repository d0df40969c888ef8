//! The frames of RFC 6455, byte by byte: a test writes them as they go over the wire, and reads
//! them strictly.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::cluster::ALICE;
use crate::world::socket::{Socket, Upstream, session};
use crate::world::waiting::{ANSWER, SOON, within};

/// The first byte of a frame that is a whole message, or of a control frame.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// Which side of the gateway an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client, which has to mask its frames.
    Client,
    /// An upstream, which must not mask.
    Upstream,
}

pub const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

impl Side {
    /// A frame as this side has to send it. The mask is not zero, so that a mask which was not
    /// removed shows.
    pub fn frame(self, first: u8, payload: &[u8]) -> Vec<u8> {
        self.announced(first, payload.len() as u64, payload)
    }

    /// As [`Self::frame`], with `length` as the announced length.
    pub fn announced(self, first: u8, length: u64, payload: &[u8]) -> Vec<u8> {
        let is_masked = self == Self::Client;
        let bit = if is_masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(bit | length as u8),
            126..65_536 => {
                bytes.push(bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        let mask: [u8; 4] = if is_masked { [0x37, 0xfa, 0x21, 0x3d] } else { [0; 4] };
        if is_masked {
            bytes.extend(mask);
        }
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// One end of a WebSocket through the gateway.
pub struct End {
    side: Side,
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl End {
    fn new(side: Side, socket: Socket) -> Self {
        Self { side, stream: socket.0.into_inner(), bytes: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(ANSWER, "bytes are taken", self.stream.write_all(bytes))
            .await
            .expect("the connection is open");
    }

    /// Sends a frame as this side has to.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&self.side.frame(first, payload)).await;
    }

    /// Returns the next frame: its first byte and its payload. Checks that the gateway sent it
    /// whole, with the right mask and length.
    pub async fn next(&mut self) -> (u8, Vec<u8>) {
        within(ANSWER, "a frame", async {
            self.fill(2).await;
            let (is_masked, short) = (self.bytes[1] & 0x80 != 0, self.bytes[1] & 0x7f);
            let size = [0, 2, 8][usize::from(short > 125) + usize::from(short > 126)];
            let (mask, head) = if is_masked { (2 + size, 6 + size) } else { (2 + size, 2 + size) };
            self.fill(head).await;
            let long =
                self.bytes[2..2 + size].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            let length = if size == 0 { usize::from(short) } else { long };
            self.fill(head + length).await;
            let frame: Vec<u8> = self.bytes.drain(..head + length).collect();
            assert_eq!(
                is_masked,
                self.side == Side::Upstream,
                "the gateway masks its frames as a client, and no others"
            );
            assert_eq!(
                size,
                [0, 2, 8][usize::from(length > 125) + usize::from(length > 65_535)],
                "lengths take the shortest form"
            );
            assert_eq!(
                frame[0] & 0xf0,
                0x80,
                "frames of the gateway are not fragmented, and have no reserved bits"
            );
            let mask = frame[mask..head].iter().cycle();
            let payload = frame[head..].iter();
            let payload = if is_masked {
                payload.zip(mask).map(|(byte, mask)| byte ^ mask).collect()
            } else {
                payload.copied().collect()
            };
            (frame[0], payload)
        })
        .await
    }

    /// Returns the code of the next frame, which must be a close with nothing after it; 1005 if it
    /// has no code. A missed ping would close the connection, too, but only after a minute.
    pub async fn closed(&mut self) -> u16 {
        let (first, payload) = within(SOON, "a close", self.next()).await;
        assert_eq!(
            first,
            CLOSE,
            "a close and not {first:#x} {:?}",
            String::from_utf8_lossy(&payload)
        );
        assert!(payload.is_empty() || std::str::from_utf8(&payload[2..]).is_ok());
        self.ends().await;
        payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))
    }

    /// Checks that nothing more comes after a close. A server then ends the connection, and its
    /// client waits for that.
    pub async fn ends(&mut self) {
        if self.side == Side::Upstream {
            let _ = self.stream.shutdown().await;
        }
        self.left().await;
    }

    /// Checks that nothing more comes, and that the connection is not reset, because a reset could
    /// have cut off the last frame.
    pub async fn left(&mut self) {
        let rest = within(SOON, "the end", self.stream.read_to_end(&mut self.bytes)).await;
        assert!(matches!(rest, Ok(0)) && self.bytes.is_empty(), "{rest:?}: {:?}", self.bytes);
    }

    async fn fill(&mut self, count: usize) {
        while self.bytes.len() < count {
            let read = self.stream.read_buf(&mut self.bytes).await;
            assert!(matches!(read, Ok(1..)), "a frame and not {read:?}, behind {:?}", self.bytes);
        }
    }
}

/// Opens a WebSocket through the gateway at `address`. Returns the end at `side`, and the other
/// end.
pub async fn open(address: std::net::SocketAddr, upstream: &Upstream, side: Side) -> (End, End) {
    let (client, there) = tokio::join!(session(address, ALICE, "s"), upstream.accept());
    let (client, there) = (End::new(Side::Client, client), End::new(Side::Upstream, there));
    match side {
        Side::Client => (client, there),
        Side::Upstream => (there, client),
    }
}
