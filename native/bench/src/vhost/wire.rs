//! Messages of a vhost-user frontend.
//!
//! Source: QEMU docs/interop/vhost-user.rst.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::sys;

/// A backend that says nothing for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

const HEADER_BYTES: usize = 12;
const MAX_PAYLOAD: u32 = 4096;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;

/// A connection to a backend.
pub struct Connection {
    socket: UnixStream,
    /// REPLY_ACK is negotiated: every message is acknowledged.
    pub acknowledged: bool,
}

impl Connection {
    /// # Errors
    /// What connect says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, acknowledged: false })
    }

    /// The descriptor that ends with the backend.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Tell the backend something.
    ///
    /// # Errors
    /// A backend that refuses it or has gone.
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<(), String> {
        self.send(request, if self.acknowledged { NEED_REPLY } else { 0 }, payload, fds)?;
        if !self.acknowledged {
            return Ok(());
        }
        match number(&self.receive(request)?.0)? {
            0 => Ok(()),
            code => Err(format!("the backend refuses message {request} with {code}")),
        }
    }

    /// Ask for a number.
    ///
    /// # Errors
    /// A backend that answers something else or has gone.
    pub fn ask(&self, request: u32) -> Result<u64, String> {
        number(&self.ask_with(request, &[])?.0)
    }

    /// Ask for bytes, and perhaps a descriptor.
    ///
    /// # Errors
    /// A backend that has gone or breaks the protocol.
    pub fn ask_with(&self, request: u32, payload: &[u8]) -> Result<(Vec<u8>, Option<OwnedFd>), String> {
        self.send(request, 0, payload, &[])?;
        self.receive(request)
    }

    fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<(), String> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        for word in [request, VERSION | flags, payload.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(payload);
        sys::send(self.socket.as_fd(), &bytes, fds).map_err(|error| format!("message {request}: {error}"))
    }

    fn receive(&self, request: u32) -> Result<(Vec<u8>, Option<OwnedFd>), String> {
        let (mut header, mut fd) = ([0; HEADER_BYTES], None);
        self.fill(&mut header, &mut fd).map_err(|error| format!("answer to {request}: {error}"))?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(0) != request || word(8) > MAX_PAYLOAD {
            return Err(format!("answer to {request}: it is to {} with {} bytes", word(0), word(8)));
        }
        let mut payload = vec![0; word(8) as usize];
        self.fill(&mut payload, &mut fd).map_err(|error| format!("answer to {request}: {error}"))?;
        Ok((payload, fd))
    }

    fn fill(&self, mut buf: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<()> {
        while !buf.is_empty() {
            let now = sys::receive(self.socket.as_fd(), buf, fd)?;
            buf = &mut buf[now..];
        }
        Ok(())
    }
}

fn number(payload: &[u8]) -> Result<u64, String> {
    let bytes = payload.try_into().map_err(|_| format!("an answer of {} bytes, not 8", payload.len()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// A payload of words of 64 bits.
pub fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A payload of two words of 32 bits: a queue and what is said of it.
pub fn of_queue(index: u16, value: u32) -> Vec<u8> {
    [u32::from(index), value].iter().flat_map(|value| value.to_le_bytes()).collect()
}
