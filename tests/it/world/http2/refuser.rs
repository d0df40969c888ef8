//! An upstream that speaks HTTP/2. It refuses each request with the credential that came first, and
//! serves all others.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::world::http2::DOCUMENT;

/// The requests that came: the credential and the body of each.
pub type Book = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Starts the upstream.
pub async fn start() -> (SocketAddr, Book) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let (address, book) = (listener.local_addr().expect("it is bound"), Book::default());
    let kept = Arc::clone(&book);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&kept)));
        }
    });
    (address, book)
}

async fn serve(stream: TcpStream, book: Book) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(asked) = connection.accept().await {
        let (request, answer) = asked?;
        tokio::spawn(decide(request, answer, Arc::clone(&book)));
    }
    Ok(())
}

async fn decide(
    request: Request<h2::RecvStream>,
    mut answer: SendResponse<Bytes>,
    book: Book,
) -> Result<(), h2::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let secret = head.headers["authorization"].to_str().expect("a credential").to_owned();
    let is_refused = {
        let mut book = book.lock().expect("no holder panics");
        book.push((secret.clone(), body));
        book[0].0 == secret
    };
    if is_refused {
        answer.send_reset(Reason::REFUSED_STREAM);
        return Ok(());
    }
    let head = Response::builder().header("content-type", "application/json").body(());
    let mut sending = answer.send_response(head.expect("a valid head"), false)?;
    sending.send_data(Bytes::from_static(DOCUMENT), true)
}
