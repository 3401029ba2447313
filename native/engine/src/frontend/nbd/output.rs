//! What a connection has to send: a batch of small replies, buffers, and file ranges that leave by sendfile.

use std::collections::VecDeque;
use std::io;

use super::batch::Batch;
use super::stream::Stream;
use crate::bdev::Lent;
use crate::sys::buf::IoData;

/// Replies after which a batch is sent, so that the client starts while the rest is answered.
const BATCH_REPLIES: usize = 32;
/// The same for replies that tasks put together one by one.
const SOME_REPLIES: usize = 8;
/// Bytes that are no longer few.
const SOME_BYTES: usize = 32 << 10;
/// Bytes after which a batch is sent.
const BATCH_BYTES: usize = 256 << 10;
/// Unsent bytes above which no further request is taken.
const HIGH_WATER: usize = 1 << 20;

enum Segment {
    Bytes(Batch),
    Data(IoData),
    File { lent: Lent, len: usize },
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Segment::Bytes(batch) => batch.len(),
            Segment::Data(data) => data.len(),
            Segment::File { len, .. } => *len,
        }
    }
}

/// How far a flush came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    All,
    /// The socket is full.
    Blocked,
}

/// The unsent replies of one connection.
#[derive(Default)]
pub struct Output {
    /// Replies that are being put together; header and payload of each are contiguous.
    batch: Batch,
    replies: usize,
    queue: VecDeque<Segment>,
    /// Bytes of the queue's first segment that are gone.
    sent: usize,
    queued_bytes: usize,
}

impl Output {
    /// Where small replies are appended; `end_reply` follows each.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    pub fn end_reply(&mut self) {
        self.replies += 1;
    }

    /// Append data to the reply whose header is in the batch.
    pub fn push_data(&mut self, data: IoData) {
        self.close_batch();
        self.queued_bytes += data.len();
        self.queue.push_back(Segment::Data(data));
    }

    /// Append a file range to the reply whose header is in the batch.
    pub fn push_file(&mut self, lent: Lent, len: usize) {
        self.close_batch();
        self.queued_bytes += len;
        self.queue.push_back(Segment::File { lent, len });
    }

    /// Whether it is time to send although more could be answered first.
    pub fn is_batch_full(&self) -> bool {
        self.replies >= BATCH_REPLIES || self.batch.len() + self.queued_bytes >= BATCH_BYTES
    }

    /// Whether half of a batch waits, and not more.
    pub fn is_batch_half_full(&self) -> bool {
        self.replies == BATCH_REPLIES / 2
    }

    /// Whether there is enough for the client to go on with although more may be ready at once.
    pub fn has_some_replies(&self) -> bool {
        self.replies >= SOME_REPLIES || self.is_batch_full()
    }

    /// Whether there are replies, but so few and small ones that they are sent in no time.
    pub fn has_few_replies(&self) -> bool {
        (1..SOME_REPLIES).contains(&self.replies) && self.queue.is_empty() && self.batch.len() < SOME_BYTES
    }

    pub fn is_over_high_water(&self) -> bool {
        self.batch.len() + self.queued_bytes >= HIGH_WATER
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.queue.is_empty()
    }

    fn close_batch(&mut self) {
        if !self.batch.is_empty() {
            self.queued_bytes += self.batch.len();
            self.queue.push_back(Segment::Bytes(std::mem::take(&mut self.batch)));
        }
    }

    /// Send as much as the socket takes.
    ///
    /// # Errors
    /// What the socket says; `WriteZero` when a lent file has shrunk. The connection is of no use afterwards.
    pub fn flush(&mut self, stream: &Stream) -> io::Result<Flushed> {
        self.replies = 0;
        let flushed = if self.queue.is_empty() { self.flush_batch(stream)? } else { self.flush_queue(stream)? };
        Ok(if flushed == Flushed::All && !stream.flush()? { Flushed::Blocked } else { flushed })
    }

    fn flush_queue(&mut self, stream: &Stream) -> io::Result<Flushed> {
        self.close_batch();
        while let Some(front) = self.queue.front() {
            let result = match front {
                Segment::File { lent, len } => {
                    stream.send_file(&lent.file, lent.offset + self.sent as u64, len - self.sent)
                }
                Segment::Bytes(_) | Segment::Data(_) => self.send_memory(stream),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flushed::All)
    }

    /// The common case: one batch, one send, and the allocation is kept.
    fn flush_batch(&mut self, stream: &Stream) -> io::Result<Flushed> {
        let mut done = 0;
        while done < self.batch.len() {
            match stream.send(&self.batch.bytes()[done..]) {
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.batch.drain(done);
                    self.close_batch();
                    return Ok(Flushed::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
        self.batch.truncate(0);
        Ok(Flushed::All)
    }

    fn send_memory(&self, stream: &Stream) -> io::Result<usize> {
        let mut parts: smallvec::SmallVec<[&[u8]; 64]> = smallvec::SmallVec::new();
        let mut skip = self.sent;
        let mut more = false;
        for segment in self.queue.iter().take(64) {
            let bytes: &[u8] = match segment {
                Segment::Bytes(batch) => batch.bytes(),
                Segment::Data(data) => data,
                Segment::File { .. } => {
                    more = true;
                    break;
                }
            };
            parts.push(&bytes[skip..]);
            skip = 0;
        }
        match &parts[..] {
            [only] if more => stream.send_more(only),
            [only] => stream.send(only),
            many => stream.send_parts(many),
        }
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        self.queued_bytes -= count;
        while let Some(front) = self.queue.front() {
            let len = front.len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            let done = self.queue.pop_front();
            if let (Some(Segment::Bytes(mut batch)), true) = (done, self.batch.is_new()) {
                batch.truncate(0);
                self.batch = batch; // keep an allocation for the next batch
            }
        }
    }
}
