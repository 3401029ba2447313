//! The handshake on a socket.

use std::io;
use std::sync::Arc;

use super::super::export::Session;
use super::super::handshake::{Handshake, Progress, Tls};
use super::super::listener::{Shared, Visitor};
use super::super::receive::Receive;
use super::super::stream::Stream;
use crate::reactor::io as socket_io;

/// The handshake; None when the connection is to be closed.
pub async fn negotiate(stream: &Stream, id: u64, shared: &Arc<Shared>, receive: &mut Receive) -> Option<Session> {
    let tls = match shared.tls() {
        None => Tls::Off,
        Some(server) if server.is_required() => Tls::Required,
        Some(_) => Tls::Offered,
    };
    let mut handshake = Handshake::with_tls(tls);
    let visitor = Visitor::new(shared, id, stream.socket());
    let mut out = Vec::new();
    handshake.greeting(&mut out);
    loop {
        send_all(stream, &mut out).await?;
        let progress = handshake.feed(receive.data(), &visitor, &mut out);
        match progress {
            Progress::NeedMore { consumed } => receive.consume(consumed),
            Progress::StartTls { consumed } => {
                receive.consume(consumed);
                // What came with the option was sent in the clear, perhaps by somebody in between who wants it to be
                // taken for the client's own words under TLS.
                if !receive.data().is_empty() {
                    return None;
                }
                send_all(stream, &mut out).await?;
                stream.start_tls(shared.tls()?).await.ok()?;
            }
            Progress::Transmission { consumed, agreed } => {
                receive.consume(consumed);
                send_all(stream, &mut out).await?;
                return visitor.into_session(agreed);
            }
            Progress::Close { consumed } => {
                receive.consume(consumed);
                let _ = send_all(stream, &mut out).await;
                return None;
            }
        }
        send_all(stream, &mut out).await?;
        if receive.data().is_empty() && !receive_some(stream, receive).await {
            return None;
        }
    }
}

/// Send everything; None when the client is gone.
async fn send_all(stream: &Stream, out: &mut Vec<u8>) -> Option<()> {
    let mut done = 0;
    while done < out.len() {
        match stream.send(&out[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket_io::writable(stream.raw_fd()).await,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    while !stream.flush().ok()? {
        socket_io::writable(stream.raw_fd()).await;
    }
    out.clear();
    Some(())
}

/// Receive something; false at the stream's end.
pub async fn receive_some(stream: &Stream, receive: &mut Receive) -> bool {
    loop {
        match receive.try_fill(stream) {
            Some(received) => return received.is_ok_and(|count| count > 0),
            None => socket_io::readable(stream.raw_fd()).await,
        }
    }
}
