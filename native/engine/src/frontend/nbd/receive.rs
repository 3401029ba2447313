//! What a connection has received: a buffer that requests are cut from.

use std::io;

use super::proto::EXTENDED_REQUEST_BYTES;
use super::stream::Stream;

/// Large enough for 32 writes of 4 KiB and then some.
const CAPACITY: usize = 256 << 10;

/// Received bytes that are not consumed yet.
pub struct Receive {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last request brought a large payload, so the next one may: its header alone is taken at first, since what
    /// comes in here of a payload has to be copied to where it belongs.
    after_payload: bool,
}

/// One header and little more.
const HEADER_MAX: usize = EXTENDED_REQUEST_BYTES;

impl Receive {
    pub fn new() -> Self {
        Self { buf: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0, after_payload: false }
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
        let room = &mut self.buf[self.end..];
        let most = if self.after_payload { HEADER_MAX } else { room.len() };
        let count = stream.recv(&mut room[..most])?;
        self.end += count;
        self.after_payload = false;
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
        let received = unless_empty(|| stream.recv_two(payload, &mut self.buf[..HEADER_MAX]))?;
        Some(received.map(|count| {
            let own = count.min(payload.len());
            (self.start, self.end) = (0, count - own);
            self.after_payload = true;
            (own, count)
        }))
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
