//! Large payloads of writes: into a pipe on their way to a file where the bdev takes that, else into a buffer.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::super::proto::Request;
use super::super::receive::Receive;
use super::{Connection, negotiate};
use crate::error::{Error, Result};
use crate::frontend::budget::Permit;
use crate::reactor::{exec, io as socket_io};
use crate::sys::buf::IoBuf;
use crate::sys::pipe::Pipe;

/// A client that stops in the middle of a payload holds memory that others wait for: it has this long to go on.
const PAYLOAD_STALL_TIME: Duration = Duration::from_secs(60);
/// Room of a pipe, bytes; more than the largest payload that goes through it, as pages are not always full.
const PIPE_BYTES: usize = 1 << 20;

/// A connection's two pipes, made when they are first wanted: one is filled while the payload in the other waits.
#[derive(Default)]
pub(super) struct PayloadPipes {
    pipes: [OnceCell<Option<Rc<Pipe>>>; 2],
    waiting: RefCell<Option<PipedWrite>>,
}

/// A write whose payload is in a pipe.
struct PipedWrite {
    request: Request,
    pipe: Rc<Pipe>,
    permit: Permit,
}

impl PayloadPipes {
    /// A pipe with nothing in it; None where there is none, as a user's pipes may take only so much memory.
    fn empty(&self) -> Option<Rc<Pipe>> {
        let made = self.pipes.iter().map(|pipe| pipe.get_or_init(|| Pipe::new(PIPE_BYTES).ok().map(Rc::new)));
        made.flatten().find(|pipe| pipe.is_empty()).cloned()
    }

    /// Whether a write waits whose payload is here.
    fn has_waiting(&self) -> bool {
        self.waiting.borrow().is_some()
    }
}

/// How receiving into a pipe ended.
enum Piped {
    All,
    /// The pipe is full although less is in it: its pages are not.
    Full,
    /// The client is gone or has stopped for too long.
    Gone,
}

impl Connection {
    /// Receive the rest of a large payload, then carry out the write or start it.
    pub(super) async fn receive_payload(self: &Rc<Self>, receive: &mut Receive, request: Request, have: usize) -> bool {
        let len = request.length as usize;
        let permit = match self.account.try_take(len) {
            Some(permit) => permit,
            None => {
                self.carry_out_waiting();
                self.flush();
                self.account.take(len).await
            }
        };
        let Some(pipe) = self.pipe_for(&request, have) else {
            if self.carry_out_waiting() {
                self.flush();
            }
            let mut buf = IoBuf::new(len);
            buf[..have].copy_from_slice(receive.data());
            receive.consume(have);
            return self.fill_and_write(receive, request, buf, have, permit).await;
        };
        match self.fill_pipe(receive, &pipe, len).await {
            Piped::All => {
                self.carry_out_waiting();
                self.pipes.waiting.replace(Some(PipedWrite { request, pipe, permit }));
            }
            Piped::Full => {
                let (mut buf, piped) = (IoBuf::new(len), pipe.len());
                if pipe.read_exact(&mut buf[..piped]).is_err() {
                    return false;
                }
                return self.fill_and_write(receive, request, buf, piped, permit).await;
            }
            Piped::Gone => return false,
        }
        true
    }

    /// The pipe that a write's payload should go through, None where a buffer is better or none of it is left to come.
    fn pipe_for(self: &Rc<Self>, request: &Request, have: usize) -> Option<Rc<Pipe>> {
        let may = have == 0 && !request.has_fua() && !self.stream.is_encrypted() && !self.is_unaligned(request);
        if !may || !self.bdev.takes_pipe(request.offset, request.length as usize) {
            return None;
        }
        self.pipes.empty().or_else(|| if self.carry_out_waiting() { self.pipes.empty() } else { None })
    }

    /// Receive `len` bytes into the pipe.
    async fn fill_pipe(self: &Rc<Self>, receive: &mut Receive, pipe: &Pipe, len: usize) -> Piped {
        let mut is_readable = false;
        while pipe.len() < len {
            let attempt = || receive.try_fill_pipe(&self.stream, pipe, len - pipe.len());
            match self.receive_soon(attempt) {
                Some(Ok(count)) if count > 0 => is_readable = false,
                Some(_) => return Piped::Gone,
                None if is_readable => return Piped::Full,
                None if self.more_comes().await => is_readable = true,
                None => return Piped::Gone,
            }
        }
        socket_io::note_activity(self.session.id());
        Piped::All
    }

    /// Carry out the write whose payload waits in a pipe; whether there was one. Its answer is left to be sent.
    ///
    /// To copy the payload takes long: what is ready leaves first.
    pub(super) fn carry_out_waiting(self: &Rc<Self>) -> bool {
        let Some(PipedWrite { request, pipe, permit }) = self.pipes.waiting.take() else { return false };
        self.flush();
        self.write_pipe(request, &pipe, permit);
        true
    }

    /// Receive the next request's header while a payload waits to be written: that of another one makes room for the client
    /// to go on before the copying begins. False: there is nothing, or it is the turn of others.
    pub(super) fn receive_ahead(&self, receive: &mut Receive) -> bool {
        let may = self.pipes.has_waiting() && self.has_turns_left() && !exec::has_ready();
        may && self.take_another_turn(receive.try_fill(&self.stream))
    }

    /// Write what the pipe holds, in place if that can be done, else from a buffer.
    fn write_pipe(self: &Rc<Self>, request: Request, pipe: &Pipe, permit: Permit) {
        if let Some(result) = self.write_pipe_in_place(&request, pipe) {
            return self.reply(&request, &result);
        }
        let left = pipe.len();
        let written = request.length - left as u64;
        let rest = Request { offset: request.offset + written, length: left as u64, ..request };
        let mut buf = IoBuf::new(left);
        if let Err(error) = pipe.read_exact(&mut buf) {
            self.reply_error(&request, &Error::from_io("a payload's pipe", &error));
        } else if self.is_unaligned(&rest) {
            self.start_unaligned(rest, buf, permit);
        } else {
            self.start_write(rest, buf, permit);
        }
    }

    fn write_pipe_in_place(&self, request: &Request, pipe: &Pipe) -> Option<Result<()>> {
        let _change = self.export().locks.try_unlocked()?;
        self.bdev.try_write_pipe(request.offset, pipe, None)
    }

    /// Receive the rest of a payload into its buffer, of which `filled` bytes are there, then carry out or start the write.
    async fn fill_and_write(
        self: &Rc<Self>,
        receive: &mut Receive,
        request: Request,
        mut buf: IoBuf,
        mut filled: usize,
        permit: Permit,
    ) -> bool {
        while filled < buf.len() {
            let Some((own, all)) = self.receive_part(receive, &mut buf[filled..]).await else { return false };
            if all == 0 {
                return false;
            }
            filled += own;
        }
        socket_io::note_activity(self.session.id());
        self.start_received_write(receive, request, buf, permit).await;
        true
    }

    /// Receive some of a payload and what follows it; None when the client is gone or has stopped for too long.
    async fn receive_part(self: &Rc<Self>, receive: &mut Receive, payload: &mut [u8]) -> Option<(usize, usize)> {
        loop {
            if let Some(received) = self.receive_soon(|| receive.try_fill_payload(&self.stream, payload)) {
                return received.ok();
            }
            if !self.more_comes().await {
                return None;
            }
        }
    }

    /// What is there, or comes within the time that sleeping costs: the client is about to send the rest.
    fn receive_soon<T>(self: &Rc<Self>, mut attempt: impl FnMut() -> Option<io::Result<T>>) -> Option<io::Result<T>> {
        if let Some(received) = attempt() {
            return Some(received);
        }
        // While a payload is copied the client sends what it had no room for.
        if self.carry_out_waiting()
            && let Some(received) = attempt()
        {
            return Some(received);
        }
        self.flush();
        let only_this = self.account.requests() == 1 && !self.blocked.get();
        if only_this { socket_io::spin(attempt) } else { None }
    }

    /// Wait for more of a payload; false when the client has stopped for too long.
    async fn more_comes(&self) -> bool {
        let more = socket_io::readable(self.stream.raw_fd());
        matches!(exec::race(more, exec::sleep(PAYLOAD_STALL_TIME)).await, exec::Either::Left(()))
    }

    /// Carry out a large write whose payload is here.
    ///
    /// To copy it takes longer than to receive it, so where the client has sent more, the backend copies meanwhile.
    async fn start_received_write(self: &Rc<Self>, receive: &Receive, request: Request, buf: IoBuf, permit: Permit) {
        if self.is_unaligned(&request) {
            return self.start_unaligned(request, buf, permit);
        }
        let is_alone = receive.data().is_empty() && self.account.requests() == 1;
        if is_alone && let Some(result) = self.write_in_place(&request, &buf) {
            return self.reply(&request, &result);
        }
        self.start_write(request, buf, permit);
        exec::yield_now().await;
    }

    /// Read past a payload that is not wanted.
    pub(super) async fn skip_payload(&self, receive: &mut Receive, mut left: u64) -> bool {
        loop {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(receive.data().len());
            receive.consume(now);
            left -= now as u64;
            if left == 0 {
                return true;
            }
            if !negotiate::receive_some(&self.stream, receive).await {
                return false;
            }
        }
    }
}
