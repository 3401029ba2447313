//! TLS on a socket that never blocks.
//!
//! What OpenSSL wants to send is kept here until the socket takes it, so a read never waits for a write: OpenSSL never
//! asks for the socket to become writable, and the caller sees one kind of waiting in each direction.

use std::io::{self, Read, Write};
use std::sync::Arc;

use openssl::ssl::{ErrorCode, Ssl, SslStream};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::Socket;

/// Received at once: several records of at most 16 KiB.
const INPUT_BYTES: usize = 64 << 10;
/// Encrypted at once: what a send buffer takes, so that little of it waits here.
const OUTPUT_BYTES: usize = 256 << 10;

/// The socket below TLS.
struct Wire {
    socket: Arc<Socket>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    /// Bytes of the output that are gone.
    sent: usize,
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = self.socket.recv(&mut self.input)?;
        }
        let count = buf.len().min(self.end - self.start);
        buf[..count].copy_from_slice(&self.input[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    /// Send what waits; whether all of it is gone.
    fn send_output(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.socket.send(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }
}

/// How far a handshake came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Done,
    /// The client has to send more.
    NeedsInput,
}

/// The server's side of one TLS connection.
pub struct TlsConnection {
    stream: SslStream<Wire>,
}

impl TlsConnection {
    /// # Errors
    /// `Internal`: no memory.
    pub fn new(session: Ssl, socket: Arc<Socket>) -> Result<Self> {
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        let wire = Wire { socket, input, start: 0, end: 0, output: Vec::new(), sent: 0 };
        let stream = SslStream::new(session, wire);
        let stream = stream.map_err(|error| Error::new(ErrorKind::Internal, format!("TLS: {error}")))?;
        Ok(Self { stream })
    }

    /// Go on with the handshake by what the client has sent. Computes for a millisecond or more: not on a reactor.
    /// What is to be sent waits for `flush`, also after an error.
    ///
    /// # Errors
    /// `Permission`: the client and the server do not come together, for instance over a certificate.
    pub fn accept(&mut self) -> Result<Step> {
        match self.stream.accept() {
            Ok(()) => Ok(Step::Done),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(Step::NeedsInput),
            Err(error) => Err(Error::new(ErrorKind::Permission, format!("TLS handshake: {error}"))),
        }
    }

    /// Send what waits; whether all of it is gone.
    ///
    /// # Errors
    /// What the socket says.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.stream.get_mut().send_output()
    }

    pub fn has_unsent(&self) -> bool {
        !self.stream.get_ref().output.is_empty()
    }

    /// Receive what is there; Ok(0) is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing yet; anything else ends the connection.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.stream.ssl_read(&mut buf[filled..]) {
                Ok(count) => filled += count,
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => break,
                Err(error) if error.code() == ErrorCode::WANT_READ => {
                    if filled == 0 {
                        self.flush()?; // an answer of TLS itself may have come up
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    break;
                }
                Err(_) if filled > 0 => break, // is found again by the next call
                Err(error) => return Err(error.into_io_error().unwrap_or_else(io::Error::other)),
            }
        }
        Ok(filled)
    }

    /// Take some of `data` to be sent; what does not leave at once waits for `flush`.
    ///
    /// # Errors
    /// `WouldBlock` while earlier data wait for the socket; anything else ends the connection.
    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        if !self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let data = &data[..data.len().min(OUTPUT_BYTES)];
        let count =
            self.stream.ssl_write(data).map_err(|error| error.into_io_error().unwrap_or_else(io::Error::other))?;
        self.flush()?;
        Ok(count)
    }

    /// Say goodbye, so that the client knows that nothing was cut off; at best.
    pub fn close(&mut self) {
        let _ = self.stream.shutdown();
        let _ = self.flush();
    }
}
