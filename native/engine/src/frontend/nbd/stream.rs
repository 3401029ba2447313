//! A client's connection: its socket, with or without TLS on it.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::tls::{Step, TlsConnection, TlsServer};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Level;
use crate::reactor::sync::lock;
use crate::reactor::{io as socket_io, offload};
use crate::sys::file::StorageFile;
use crate::sys::pipe::Pipe;
use crate::sys::socket::Socket;

/// Bytes to and from one client.
pub struct Stream {
    socket: Arc<Socket>,
    /// What was sent lies in memory until the client takes it.
    is_local: bool,
    tls: RefCell<Option<Box<TlsConnection>>>,
}

impl Stream {
    pub fn new(socket: Arc<Socket>) -> Self {
        Self { is_local: socket.is_unix(), socket, tls: RefCell::new(None) }
    }

    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    pub fn raw_fd(&self) -> RawFd {
        self.socket.raw_fd()
    }

    pub fn is_encrypted(&self) -> bool {
        self.tls.borrow().is_some()
    }

    /// From here on everything is TLS. The handshake is computed on another thread.
    ///
    /// # Errors
    /// The client left, or the two do not come together; the connection is of no use then.
    pub async fn start_tls(&self, server: &Arc<TlsServer>) -> Result<()> {
        let begun = self.shake_hands(server).await;
        if let Err(error) = &begun {
            server.tell(Level::Info, format!("a client was refused: {error}"));
        }
        begun
    }

    async fn shake_hands(&self, server: &Arc<TlsServer>) -> Result<()> {
        let (loading, socket) = (Arc::clone(server), Arc::clone(&self.socket));
        let new = move || loading.new_session().and_then(|session| TlsConnection::new(session, socket));
        let made = offload::run(move || Arc::new(Mutex::new(Some(new())))).await;
        let mut tls = lock(&made).take().unwrap_or_else(|| Err(gone()))?;
        loop {
            let step = move || {
                let outcome = tls.accept();
                Arc::new(Mutex::new(Some((tls, outcome))))
            };
            let stepped = offload::run(step).await;
            let outcome;
            (tls, outcome) = lock(&stepped).take().ok_or_else(gone)?;
            while !tls.flush().map_err(|error| Error::from_io("TLS handshake", &error))? {
                socket_io::writable(self.raw_fd()).await;
            }
            match outcome? {
                Step::Done => break,
                Step::NeedsInput => socket_io::readable(self.raw_fd()).await,
            }
        }
        *self.tls.borrow_mut() = Some(Box::new(tls));
        Ok(())
    }

    /// Receive what is there; Ok(0) is the end of the stream.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut *self.tls.borrow_mut() {
            None => self.socket.recv(buf),
            Some(tls) => tls.recv(buf),
        }
    }

    /// Receive into `first`, then into `second`.
    pub fn recv_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        match &mut *self.tls.borrow_mut() {
            None => self.socket.recv_two(first, second),
            Some(tls) => tls.recv(first),
        }
    }

    /// Receive at most `most` bytes into a pipe, as they are.
    ///
    /// # Errors
    /// What the socket says; `Unsupported` under TLS, where nothing arrives as it is.
    pub fn splice(&self, pipe: &Pipe, most: usize) -> io::Result<usize> {
        if self.is_encrypted() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        pipe.fill_from(&self.socket, most)
    }

    /// Send what fits. Under TLS some of what was taken may wait for `flush`.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        match &mut *self.tls.borrow_mut() {
            None => self.socket.send(data),
            Some(tls) => tls.send(data),
        }
    }

    /// Send the parts one after another, as much as fits.
    pub fn send_parts(&self, parts: &[&[u8]]) -> io::Result<usize> {
        match (&mut *self.tls.borrow_mut(), parts.first()) {
            (Some(tls), Some(first)) => tls.send(first),
            _ => self.socket.send_parts(parts),
        }
    }

    /// Send what fits of data that more follows at once.
    pub fn send_more(&self, data: &[u8]) -> io::Result<usize> {
        match &mut *self.tls.borrow_mut() {
            None => self.socket.send_more(data),
            Some(tls) => tls.send(data),
        }
    }

    /// Send part of a file straight from the page cache, as much as fits.
    ///
    /// # Errors
    /// What the socket says; `Unsupported` under TLS, where nothing leaves as it is.
    pub fn send_file(&self, file: &StorageFile, offset: u64, len: usize) -> io::Result<usize> {
        if self.is_encrypted() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.socket.send_file(file, offset, len)
    }

    /// Send what TLS holds back; whether nothing is left.
    pub fn flush(&self) -> io::Result<bool> {
        self.tls.borrow_mut().as_mut().map_or(Ok(true), |tls| tls.flush())
    }

    /// Memory of what was sent that the client has not taken yet, bytes. Over a network nobody knows: None.
    pub fn untaken(&self) -> Option<usize> {
        self.is_local.then(|| self.socket.unreceived())
    }

    /// Whether TLS holds something back that the socket did not take yet.
    pub fn has_unsent(&self) -> bool {
        self.tls.borrow().as_ref().is_some_and(|tls| tls.has_unsent())
    }

    /// End both directions, under TLS with a word of goodbye.
    pub fn close(&self) {
        if let Some(tls) = &mut *self.tls.borrow_mut() {
            tls.close();
        }
        self.socket.shutdown();
    }
}

/// A value that was handed over between threads is taken once.
fn gone() -> Error {
    Error::new(ErrorKind::Internal, "TLS handshake: its state was taken twice")
}
