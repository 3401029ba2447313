//! Carrying out requests: in place where the bdev can, else as tasks.

use std::rc::Rc;

use super::super::batch::Batch;
use super::super::proto::{self, Command, Request};
use super::super::status;
use super::super::unaligned::Unaligned;
use super::super::zeros::is_zero;
use super::{Connection, Cut};
use crate::bdev::{LEND_MIN, PartialRead, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::budget::Permit;
use crate::reactor::exec;
use crate::sys::buf::{IoBuf, IoData};

/// Largest read that is answered by a copy into the batch.
const COPY_READ_MAX: usize = 64 << 10;

impl Connection {
    /// Carry out a checked request whose payload is there, or start it.
    pub(super) fn execute(self: &Rc<Self>, request: &Request, payload: &[u8]) -> std::result::Result<(), Cut> {
        let Some(command) = request.command else { return Err(Cut::End) };
        if self.is_unaligned(request) {
            let permit = self.permit(self.unaligned_memory(request))?;
            self.start_unaligned(*request, IoBuf::from_slice(payload), permit);
            return Ok(());
        }
        match command {
            Command::Disconnect => Err(Cut::End),
            Command::Read => self.execute_read(request),
            Command::Write => {
                if request.length == 0 {
                    self.reply_ok(request);
                    return Ok(());
                }
                if let Some(result) = self.write_in_place(request, payload) {
                    self.reply(request, &result);
                    return Ok(());
                }
                let permit = self.permit(payload.len())?;
                self.start_write(*request, IoBuf::from_slice(payload), permit);
                Ok(())
            }
            Command::BlockStatus => {
                let permit = self.permit(status::MEMORY_MAX)?;
                self.start_block_status(*request, payload, permit);
                Ok(())
            }
            Command::Flush | Command::Trim | Command::WriteZeroes | Command::Cache => {
                let permit = self.permit(0)?;
                self.start_other(*request, command, permit);
                Ok(())
            }
        }
    }

    /// Write at once, if that needs neither durability nor a lock nor waiting.
    pub(super) fn write_in_place(&self, request: &Request, payload: &[u8]) -> Option<Result<()>> {
        if request.has_fua() {
            return None;
        }
        let _change = self.export().locks.try_unlocked()?;
        self.bdev.try_write(request.offset, payload, None)
    }

    fn permit(&self, bytes: usize) -> std::result::Result<Permit, Cut> {
        self.account.try_take(bytes).ok_or(Cut::OverBudget(bytes))
    }

    fn execute_read(self: &Rc<Self>, request: &Request) -> std::result::Result<(), Cut> {
        let len = request.length as usize;
        if len == 0 {
            self.reply_ok(request);
            return Ok(());
        }
        if len >= LEND_MIN
            && !self.stream.is_encrypted()
            && let Some(lent) = self.bdev.lend(request.offset, len)
        {
            let mut output = self.output.borrow_mut();
            self.read_header(output.batch(), request);
            output.push_file(lent, len);
            output.end_reply();
            return Ok(());
        }
        if len <= COPY_READ_MAX && self.read_in_place(request, len) {
            return Ok(());
        }
        let permit = self.permit(len)?;
        self.start_read(*request, permit);
        Ok(())
    }

    /// Read straight into the batch, if the bdev can do that at once.
    fn read_in_place(&self, request: &Request, len: usize) -> bool {
        let mut output = self.output.borrow_mut();
        let batch = output.batch();
        let start = batch.len();
        self.read_header(batch, request);
        let payload = batch.space(len);
        match self.bdev.try_read(request.offset, payload, None) {
            Some(Ok(())) => {
                if self.structured() && is_zero(payload) {
                    batch.truncate(start);
                    let to = request.reply_to(self.extended());
                    proto::offset_hole(batch, to, request.offset, len as u32, true); // at most COPY_READ_MAX
                }
                output.end_reply();
                true
            }
            Some(Err(_)) | None => {
                batch.truncate(start);
                false
            }
        }
    }

    pub(super) fn read_header(&self, out: &mut Batch, request: &Request) {
        if self.structured() {
            // A read has at most MAX_PAYLOAD bytes.
            proto::offset_data(out, request.reply_to(self.extended()), request.offset, request.length as u32, true);
        } else {
            proto::simple_reply(out, request.cookie, 0);
        }
    }

    fn start_read(self: &Rc<Self>, request: Request, permit: Permit) {
        let connection = Rc::clone(self);
        exec::spawn(async move {
            let read = connection.bdev.read_partly(request.offset, request.length as usize).await;
            connection.reply_read(&request, read);
            connection.finish(permit);
        });
    }

    pub(super) fn start_write(self: &Rc<Self>, request: Request, buf: IoBuf, permit: Permit) {
        let connection = Rc::clone(self);
        exec::spawn(async move {
            let data = IoData::new(buf);
            let range = request.offset..request.offset + request.length;
            let held = connection.export().locks.begin(range).await;
            let result = connection.bdev.write(request.offset, data, request.has_fua()).await;
            drop(held);
            connection.reply(&request, &result);
            connection.finish(permit);
        });
    }

    /// Memory of a request that is not in whole blocks: those around it, or, where it carries no data, its two ends.
    fn unaligned_memory(&self, request: &Request) -> usize {
        let block = self.bdev.info().block_size as usize;
        let data = if matches!(request.command, Some(Command::Read | Command::Write)) { request.length } else { 0 };
        data as usize + 2 * block
    }

    pub(super) fn start_unaligned(self: &Rc<Self>, request: Request, payload: IoBuf, permit: Permit) {
        let connection = Rc::clone(self);
        exec::spawn(async move {
            if request.command.is_some_and(Command::modifies) {
                connection.export().locks.use_from_now_on().await;
            }
            let unaligned = Unaligned { bdev: &*connection.bdev, locks: &connection.export().locks };
            let (range, fua) = (request.offset..request.offset + request.length, request.has_fua());
            let result = match request.command {
                Some(Command::Read) => match unaligned.read(range).await {
                    Ok(buf) => {
                        connection.reply_read(&request, PartialRead { buf, failures: Vec::new() });
                        return connection.finish(permit);
                    }
                    Err(error) => Err(error),
                },
                Some(Command::Write) => unaligned.write(request.offset, &payload, fua).await,
                Some(Command::WriteZeroes) => unaligned.write_zeroes(range, zero_flags(&request)).await,
                Some(Command::Trim) => unaligned.discard(range, fua).await,
                Some(Command::Cache) => unaligned.prefetch(range).await,
                Some(Command::Flush | Command::Disconnect | Command::BlockStatus) | None => {
                    Err(Error::new(ErrorKind::Internal, "has no range in blocks"))
                }
            };
            connection.reply(&request, &result);
            connection.finish(permit);
        });
    }

    fn start_block_status(self: &Rc<Self>, request: Request, payload: &[u8], permit: Permit) {
        let agreed = self.session.agreed().contexts;
        let wanted = match request.payload_len {
            0 => Some((request.length, agreed)),
            _ => status::parse_filter(payload, agreed),
        };
        let checked = match wanted {
            Some((length, contexts)) => self.check_status_range(&request, length).map(|range| (range, contexts)),
            None => Err(Error::new(ErrorKind::InvalidParams, "the payload names no contexts that were agreed on")),
        };
        let (range, contexts) = match checked {
            Ok(checked) => checked,
            Err(error) => return self.reply_error(&request, &error),
        };
        let connection = Rc::clone(self);
        exec::spawn(async move {
            let only_one = request.flags & proto::FLAG_REQ_ONE != 0;
            match status::query(&*connection.bdev, range, only_one).await {
                Ok(extents) => {
                    let mut output = connection.output.borrow_mut();
                    let to = request.reply_to(connection.extended());
                    status::reply(output.batch(), to, contexts, &extents, only_one);
                    output.end_reply();
                }
                Err(error) => connection.reply_error(&request, &error),
            }
            connection.finish(permit);
        });
    }

    fn start_other(self: &Rc<Self>, request: Request, command: Command, permit: Permit) {
        let connection = Rc::clone(self);
        exec::spawn(async move {
            let result = connection.other(&request, command).await;
            connection.reply(&request, &result);
            connection.finish(permit);
        });
    }

    async fn other(&self, request: &Request, command: Command) -> Result<()> {
        let (offset, len, fua) = (request.offset, request.length, request.has_fua());
        let locks = &self.export().locks;
        let _held = match command {
            Command::Trim | Command::WriteZeroes if len != 0 => Some(locks.begin(offset..offset + len).await),
            _ => None,
        };
        match command {
            Command::Flush => self.bdev.flush().await,
            _ if len == 0 => Ok(()),
            Command::Trim => self.bdev.discard(offset, len, fua).await,
            Command::WriteZeroes => self.bdev.write_zeroes(offset, len, zero_flags(request)).await,
            Command::Cache => self.bdev.prefetch(offset, len).await,
            Command::Read | Command::Write | Command::Disconnect | Command::BlockStatus => {
                Err(Error::new(ErrorKind::Internal, "carried out elsewhere"))
            }
        }
    }
}

/// What a WRITE_ZEROES asks for.
fn zero_flags(request: &Request) -> ZeroFlags {
    ZeroFlags {
        no_hole: request.flags & proto::FLAG_NO_HOLE != 0,
        fua: request.has_fua(),
        fast: request.flags & proto::FLAG_FAST_ZERO != 0,
    }
}
