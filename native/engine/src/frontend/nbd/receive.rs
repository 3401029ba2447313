//! What a connection has received: a buffer that requests are cut from.

use std::io;

use super::proto::EXTENDED_REQUEST_BYTES;
use super::stream::Stream;
use crate::sys::pipe::Pipe;

/// Large enough for 32 writes of 4 KiB and then some.
const CAPACITY: usize = 256 << 10;

/// Received bytes that are not consumed yet.
pub struct Receive {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// How many headers more are taken alone, since one of the last requests brought a large payload: the next may, and
    /// what comes in here of a payload has to be copied to where it belongs.
    headers_alone: u32,
    /// Length of a request's header.
    header_len: usize,
}

/// Receives after a large payload that take a header alone.
const HEADERS_ALONE: u32 = 4;

impl Receive {
    pub fn new() -> Self {
        let buf = vec![0; CAPACITY].into_boxed_slice();
        Self { buf, start: 0, end: 0, headers_alone: 0, header_len: EXTENDED_REQUEST_BYTES }
    }

    /// Say how long a request's header is from now on.
    pub fn set_header_len(&mut self, len: usize) {
        self.header_len = len;
    }

    /// Take the next headers alone: a request has brought a large payload.
    pub fn expect_payloads(&mut self) {
        self.headers_alone = HEADERS_ALONE;
    }

    /// Largest payload that is received here as a whole.
    pub const WHOLE_MAX: usize = CAPACITY / 4;

    pub fn data(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more is consumed than there is");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Make room for a whole small request.
    fn make_room(&mut self) {
        if self.buf.len() - self.end < Self::WHOLE_MAX * 2 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Receive what is there; Ok(0) is the end of the stream.
    fn fill(&mut self, stream: &Stream) -> io::Result<usize> {
        self.make_room();
        let has = self.end - self.start;
        let room = &mut self.buf[self.end..];
        let is_alone = self.headers_alone > 0 && has < self.header_len;
        let most = if is_alone { self.header_len - has } else { room.len() };
        let count = stream.recv(&mut room[..most])?;
        self.end += count;
        if is_alone && count == most {
            self.headers_alone -= 1;
        }
        Ok(count)
    }

    /// Receive what is there; None when that is nothing yet.
    pub fn try_fill(&mut self, stream: &Stream) -> Option<io::Result<usize>> {
        unless_empty(|| self.fill(stream))
    }

    /// Receive into `payload` first, then the little that follows it (the next header) here; None when nothing is there.
    ///
    /// Returns the bytes that went into `payload` and all that was received.
    pub fn try_fill_payload(&mut self, stream: &Stream, payload: &mut [u8]) -> Option<io::Result<(usize, usize)>> {
        debug_assert!(self.data().is_empty(), "the payload continues what was consumed");
        let received = unless_empty(|| stream.recv_two(payload, &mut self.buf[..self.header_len]))?;
        Some(received.map(|count| {
            let own = count.min(payload.len());
            (self.start, self.end) = (0, count - own);
            self.expect_payloads();
            (own, count)
        }))
    }

    /// Receive at most `most` bytes of a payload into a pipe; None when nothing is there, or the pipe is full.
    pub fn try_fill_pipe(&mut self, stream: &Stream, pipe: &Pipe, most: usize) -> Option<io::Result<usize>> {
        debug_assert!(self.data().is_empty(), "the payload continues what was consumed");
        let received = unless_empty(|| stream.splice(pipe, most));
        self.expect_payloads();
        received
    }
}

/// Receive until there was no interruption; None when nothing is there.
fn unless_empty(mut receive: impl FnMut() -> io::Result<usize>) -> Option<io::Result<usize>> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return Some(other),
        }
    }
}
