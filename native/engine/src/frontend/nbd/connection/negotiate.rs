//! The handshake on a socket.

use std::io;
use std::sync::Arc;

use super::super::export::Session;
use super::super::handshake::{Handshake, Progress};
use super::super::listener::{Shared, Visitor};
use super::super::receive::Receive;
use crate::reactor::io as socket_io;
use crate::sys::socket::Socket;

/// The handshake; None when the connection is to be closed.
pub async fn negotiate(socket: &Arc<Socket>, id: u64, shared: &Arc<Shared>, receive: &mut Receive) -> Option<Session> {
    let mut handshake = Handshake::new();
    let visitor = Visitor::new(shared, id, socket);
    let mut out = Vec::new();
    handshake.greeting(&mut out);
    loop {
        send_all(socket, &mut out).await?;
        let progress = handshake.feed(receive.data(), &visitor, &mut out);
        match progress {
            Progress::NeedMore { consumed } => receive.consume(consumed),
            Progress::Transmission { consumed, agreed } => {
                receive.consume(consumed);
                send_all(socket, &mut out).await?;
                return visitor.into_session(agreed);
            }
            Progress::Close { consumed } => {
                receive.consume(consumed);
                let _ = send_all(socket, &mut out).await;
                return None;
            }
        }
        send_all(socket, &mut out).await?;
        if receive.data().is_empty() && !receive_some(socket, receive).await {
            return None;
        }
    }
}

/// Send everything; None when the client is gone.
async fn send_all(socket: &Socket, out: &mut Vec<u8>) -> Option<()> {
    let mut done = 0;
    while done < out.len() {
        match socket.send(&out[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket_io::writable(socket.raw_fd()).await,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    out.clear();
    Some(())
}

/// Receive something; false at the stream's end.
pub async fn receive_some(socket: &Socket, receive: &mut Receive) -> bool {
    loop {
        match receive.fill(socket) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket_io::readable(socket.raw_fd()).await,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
