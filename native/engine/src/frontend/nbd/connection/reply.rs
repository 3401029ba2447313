//! Answers, in the form that was agreed on.

use super::super::batch::Append as _;
use super::super::output::Output;
use super::super::proto::{self, Command, Request};
use super::super::zeros::{Content, plan_read_reply};
use super::Connection;
use crate::bdev::PartialRead;
use crate::error::{Error, Result};
use crate::sys::buf::IoData;

/// Largest answer that is copied into the batch instead of being queued as a buffer of its own.
const COPY_REPLY_MAX: usize = 8 << 10;

impl Connection {
    pub(super) fn reply(&self, request: &Request, result: &Result<()>) {
        match result {
            Ok(()) => self.reply_ok(request),
            Err(error) => self.reply_error(request, error),
        }
    }

    pub(super) fn reply_ok(&self, request: &Request) {
        let mut output = self.output.borrow_mut();
        if self.extended() || self.structured() && request.command == Some(Command::Read) {
            proto::none_chunk(output.batch(), request.reply_to(self.extended()));
        } else {
            proto::simple_reply(output.batch(), request.cookie, 0);
        }
        output.end_reply();
    }

    pub(super) fn reply_error(&self, request: &Request, error: &Error) {
        let errno = proto::wire_errno(error.errno());
        let mut output = self.output.borrow_mut();
        let structured = matches!(request.command, Some(Command::Read | Command::BlockStatus));
        if self.extended() || self.structured() && structured {
            proto::error_chunk(output.batch(), request.reply_to(self.extended()), errno, error.message());
        } else {
            proto::simple_reply(output.batch(), request.cookie, errno);
        }
        output.end_reply();
    }

    /// Answer a read: data, zeros as holes, and where it failed.
    pub(super) fn reply_read(&self, request: &Request, read: PartialRead) {
        let PartialRead { buf, failures } = read;
        let mut output = self.output.borrow_mut();
        if !self.structured() {
            match failures.first() {
                Some((_, error)) => {
                    proto::simple_reply(output.batch(), request.cookie, proto::wire_errno(error.errno()));
                }
                None => {
                    proto::simple_reply(output.batch(), request.cookie, 0);
                    push_data(&mut output, &IoData::new(buf), 0, request.length as usize);
                }
            }
            return output.end_reply();
        }
        let only_one = request.flags & proto::FLAG_DF != 0;
        let pieces = plan_read_reply(request.offset, request.length, &buf, &failures, only_one);
        let (to, buf) = (request.reply_to(self.extended()), IoData::new(buf));
        for (index, piece) in pieces.iter().enumerate() {
            let (start, len) = (piece.range.start, (piece.range.end - piece.range.start) as u32); // at most MAX_PAYLOAD
            let is_last = index + 1 == pieces.len();
            match piece.content {
                Content::Zeros => proto::offset_hole(output.batch(), to, start, len, is_last),
                Content::Failed(error) => {
                    let errno = proto::wire_errno(error.errno());
                    proto::error_offset_chunk(output.batch(), to, errno, error.message(), start, is_last);
                }
                Content::Data => {
                    proto::offset_data(output.batch(), to, start, len, is_last);
                    push_data(&mut output, &buf, (start - request.offset) as usize, len as usize);
                }
            }
        }
        output.end_reply();
    }
}

/// Append a part of a buffer to the chunk whose header is in the batch.
fn push_data(output: &mut Output, buf: &IoData, start: usize, len: usize) {
    if len <= COPY_REPLY_MAX {
        output.batch().put(&buf[start..start + len]);
    } else {
        output.push_data(buf.slice(start, len));
    }
}
