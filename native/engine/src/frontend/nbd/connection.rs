//! One NBD client: handshake, then requests until it leaves.
//!
//! Requests are taken many per receive and answered many per send. What the bdev can do at once is done in
//! place; everything else runs as a task, so a request that waits for a stripe holds up nobody (INV-4).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::MAX_PAYLOAD;
use super::budget::{Account, Permit};
use super::export::{Export, Session};
use super::handshake::{Handshake, Progress};
use super::listener::Shared;
use super::output::{Flushed, Output};
use super::proto::{self, Command, Request};
use super::receive::Receive;
use super::status;
use super::unaligned::{Unaligned, blocks_around};
use crate::bdev::{Bdev, ZeroFlags, check_range};
use crate::error::{Error, ErrorKind, Result};
use crate::reactor::{exec, io as socket_io};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::socket::Socket;

/// A client has this long to say which export it wants.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// A client that takes no replies has this long before its drain is given up.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// A client that stops in the middle of a payload holds memory that others wait for: it has this long to go on.
const PAYLOAD_STALL_TIME: Duration = Duration::from_secs(60);
/// Receives in a row after which other tasks get a turn, whether they ask or not.
const TURN: u32 = 8;
/// Largest read that is answered by a copy into the batch.
const COPY_READ_MAX: usize = 64 << 10;

/// Serve `socket` to its end. Whatever the client does, only its own connection ends (INV-9).
pub async fn serve(socket: Arc<Socket>, id: u64, shared: &Arc<Shared>) {
    socket.tune();
    let mut receive = Receive::new();
    let agreed = exec::race(negotiate(&socket, id, shared, &mut receive), exec::sleep(HANDSHAKE_TIME)).await;
    let exec::Either::Left(Some(session)) = agreed else {
        socket.shutdown();
        return;
    };
    let connection = Rc::new(Connection::new(Arc::clone(&socket), session, shared));
    exec::spawn(Rc::clone(&connection).write_loop());
    connection.read_loop(&mut receive).await;
    connection.drain().await;
    socket.shutdown();
}

/// The handshake; None when the connection is to be closed.
async fn negotiate(socket: &Arc<Socket>, id: u64, shared: &Arc<Shared>, receive: &mut Receive) -> Option<Session> {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    handshake.greeting(&mut out);
    loop {
        send_all(socket, &mut out).await?;
        let progress = handshake.feed(receive.data(), &**shared, &mut out);
        match progress {
            Progress::NeedMore { consumed } => receive.consume(consumed),
            Progress::Transmission { consumed, agreed } => {
                receive.consume(consumed);
                let session = shared.attach(id, socket, agreed)?;
                send_all(socket, &mut out).await?;
                return Some(session);
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
async fn receive_some(socket: &Socket, receive: &mut Receive) -> bool {
    loop {
        match receive.fill(socket) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket_io::readable(socket.raw_fd()).await,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// A client in transmission.
struct Connection {
    socket: Arc<Socket>,
    session: Session,
    bdev: Arc<dyn Bdev>,
    account: Rc<Account>,
    output: RefCell<Output>,
    /// The socket takes no more, or never will again.
    blocked: Cell<bool>,
    broken: Cell<bool>,
    finished: Cell<bool>,
    /// A task finished a reply that the write loop has to send.
    dirty: Cell<bool>,
    turn: Cell<u32>,
    writer: RefCell<Option<Waker>>,
    /// Waits for the output to shrink.
    reader: RefCell<Option<Waker>>,
}

/// Why cutting requests stopped.
enum Cut {
    /// More bytes are needed.
    NeedMore,
    /// A large payload follows, of which `have` bytes were received.
    Payload(Request, usize),
    /// A payload that nobody wants: to be read past, then the error is the answer.
    Skip(Request, Error),
    /// No room for this request's memory yet.
    OverBudget(usize),
    /// Too much unsent, or a full batch.
    Send,
    /// The client is done, or sends what is no request.
    End,
}

impl Connection {
    fn new(socket: Arc<Socket>, session: Session, shared: &Arc<Shared>) -> Self {
        let bdev = Arc::clone(&session.export().bdev);
        Self {
            socket,
            session,
            bdev,
            account: Account::new(Arc::clone(shared.budget())),
            output: RefCell::new(Output::default()),
            blocked: Cell::new(false),
            broken: Cell::new(false),
            finished: Cell::new(false),
            dirty: Cell::new(false),
            turn: Cell::new(0),
            writer: RefCell::new(None),
            reader: RefCell::new(None),
        }
    }

    /// Reads are answered by chunks.
    fn structured(&self) -> bool {
        self.session.agreed().structured_replies
    }

    /// Headers have 64-bit lengths, and everything is answered by chunks.
    fn extended(&self) -> bool {
        self.session.agreed().extended_headers
    }

    fn export(&self) -> &Export {
        self.session.export()
    }

    async fn read_loop(self: &Rc<Self>, receive: &mut Receive) {
        loop {
            let cut = self.cut_requests(receive);
            self.flush();
            match cut {
                Cut::NeedMore => {
                    if !self.receive_more(receive).await {
                        return;
                    }
                }
                Cut::Payload(request, have) => {
                    if !self.receive_payload(receive, request, have).await {
                        return;
                    }
                }
                Cut::Skip(request, error) => {
                    if !self.skip_payload(receive, request.payload_len).await {
                        return;
                    }
                    self.reply_error(&request, &error);
                }
                Cut::OverBudget(bytes) => drop(self.account.take(bytes).await),
                Cut::Send => self.room_to_send().await,
                Cut::End => return,
            }
            if self.broken.get() || self.session.is_closing() {
                return;
            }
        }
    }

    /// Answer or start every complete request in the buffer.
    fn cut_requests(self: &Rc<Self>, receive: &mut Receive) -> Cut {
        loop {
            if self.is_time_to_send() {
                return Cut::Send;
            }
            let data = receive.data();
            let Some((parsed, header_len)) = self.parse_header(data) else { return Cut::NeedMore };
            let Some(request) = parsed else { return Cut::End };
            let have = data.len() - header_len;
            let checked = self.check(&request);
            if request.payload_len > u64::from(MAX_PAYLOAD) {
                let error =
                    checked.err().unwrap_or_else(|| Error::new(ErrorKind::InvalidParams, "too large a payload"));
                return self.too_large(&request, &error);
            }
            let payload_len = request.payload_len as usize;
            if let Err(error) = checked {
                if have < payload_len {
                    receive.consume(header_len);
                    return Cut::Skip(request, error);
                }
                receive.consume(header_len + payload_len);
                self.reply_error(&request, &error);
                continue;
            }
            if payload_len > have {
                if payload_len <= Receive::WHOLE_MAX {
                    return Cut::NeedMore;
                }
                receive.consume(header_len);
                return Cut::Payload(request, have);
            }
            let payload = &data[header_len..header_len + payload_len];
            match self.execute(&request, payload) {
                Ok(()) => receive.consume(header_len + payload_len),
                Err(stop) => {
                    if matches!(stop, Cut::End) {
                        receive.consume(header_len);
                    }
                    return stop;
                }
            }
        }
    }

    /// The next request and the length of its header, None while that is not complete; Some(None) is no request.
    #[inline]
    fn parse_header(&self, data: &[u8]) -> Option<(Option<Request>, usize)> {
        if self.extended() {
            let header = data.first_chunk()?;
            return Some((Request::parse_extended(header), proto::EXTENDED_REQUEST_BYTES));
        }
        let header = data.first_chunk()?;
        Some((Request::parse(header), proto::REQUEST_BYTES))
    }

    /// A full batch, or, while the socket takes nothing, as much as may wait for it.
    fn is_time_to_send(&self) -> bool {
        let output = self.output.borrow();
        if self.blocked.get() { output.is_over_high_water() } else { output.is_batch_full() }
    }

    /// A payload beyond every limit: the error is the last thing that the client hears.
    fn too_large(&self, request: &Request, error: &Error) -> Cut {
        self.reply_error(request, error);
        Cut::End
    }

    /// Everything that can be wrong with a request before it is carried out.
    fn check(&self, request: &Request) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidParams, message));
        let Some(command) = request.command else { return invalid("unknown command") };
        if command == Command::Disconnect {
            return Ok(()); // has no reply that could say what is wrong with it
        }
        if request.flags & !command.allowed_flags(self.structured(), self.extended()) != 0 {
            return invalid("a flag that this command does not have here");
        }
        let carries_data = command.has_payload() || command == Command::Read;
        if carries_data && request.length > u64::from(MAX_PAYLOAD) {
            return invalid("a request may carry at most 64 MiB");
        }
        if command.modifies() && self.export().readonly {
            return Err(Error::new(ErrorKind::Permission, "the export is read-only"));
        }
        if !command.has_range() {
            return Ok(());
        }
        if command == Command::BlockStatus {
            return self.check_block_status(request);
        }
        let (offset, len) = self.range_to_check(request);
        check_range(self.bdev.info(), offset, len).map_err(|error| {
            // NBD: past the end is ENOSPC for what writes, EINVAL for the rest.
            if command.modifies() && command != Command::Trim {
                error
            } else {
                Error::new(ErrorKind::InvalidParams, error.message())
            }
        })
    }

    /// Who asked for the block sizes keeps to them; for others the blocks around their range count.
    fn range_to_check(&self, request: &Request) -> (u64, u64) {
        let (block, len) = (u64::from(self.bdev.info().block_size), request.length);
        if self.session.agreed().block_sizes {
            return (request.offset, len);
        }
        // Beyond 64 bits is past the end: the last block that there could be stands for it.
        let around = blocks_around(block, request.offset, len).unwrap_or(!(block - 1)..!(block - 1));
        (around.start, around.end - around.start)
    }

    /// Whether a checked request has to be carried out in the blocks around it.
    fn is_unaligned(&self, request: &Request) -> bool {
        let mask = u64::from(self.bdev.info().block_size) - 1;
        let moves =
            !matches!(request.command, Some(Command::Flush | Command::Disconnect | Command::BlockStatus) | None);
        (request.offset | request.length) & mask != 0 && request.length != 0 && moves
    }

    fn check_block_status(&self, request: &Request) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidParams, message));
        if self.session.agreed().contexts.is_empty() {
            return invalid("no metadata context was agreed on");
        }
        if request.payload_len == 0 {
            return self.check_status_range(request, request.length).map(drop);
        }
        // The payload is looked at when it is there; more contexts than there are cannot be meant.
        if request.payload_len > status::FILTER_MAX {
            return invalid("the payload names more contexts than there are");
        }
        Ok(())
    }

    fn check_status_range(&self, request: &Request, length: u64) -> Result<Range<u64>> {
        let size = self.bdev.info().size_bytes();
        let end = request.offset.checked_add(length).filter(|&end| end <= size);
        match end {
            Some(end) if length > 0 => Ok(request.offset..end),
            Some(_) => Err(Error::new(ErrorKind::InvalidParams, "a block status of no bytes has no extent")),
            None => Err(Error::new(ErrorKind::InvalidParams, "the range leaves the export")),
        }
    }

    /// Carry out a checked request whose payload is there, or start it.
    fn execute(self: &Rc<Self>, request: &Request, payload: &[u8]) -> std::result::Result<(), Cut> {
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
    fn write_in_place(&self, request: &Request, payload: &[u8]) -> Option<Result<()>> {
        if request.has_fua() {
            return None;
        }
        let _change = self.export().locks.try_unlocked()?;
        self.bdev.try_write(request.offset, payload)
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
        if let Some(lent) = self.bdev.lend(request.offset, len) {
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
        let payload = batch.len();
        batch.resize(payload + len, 0);
        match self.bdev.try_read(request.offset, &mut batch[payload..]) {
            Some(Ok(())) => {
                output.end_reply();
                true
            }
            Some(Err(_)) | None => {
                batch.truncate(start);
                false
            }
        }
    }

    fn read_header(&self, out: &mut Vec<u8>, request: &Request) {
        if self.structured() {
            // A read has at most MAX_PAYLOAD bytes.
            proto::offset_data(out, request.reply_to(self.extended()), request.offset, request.length as u32);
        } else {
            proto::simple_reply(out, request.cookie, 0);
        }
    }

    fn start_read(self: &Rc<Self>, request: Request, permit: Permit) {
        let connection = Rc::clone(self);
        exec::spawn(async move {
            let result = connection.bdev.read(request.offset, request.length as usize).await;
            match result {
                Ok(buf) => connection.reply_data(&request, buf),
                Err(error) => connection.reply_error(&request, &error),
            }
            connection.finish(permit);
        });
    }

    fn start_write(self: &Rc<Self>, request: Request, buf: IoBuf, permit: Permit) {
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

    fn start_unaligned(self: &Rc<Self>, request: Request, payload: IoBuf, permit: Permit) {
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
                        connection.reply_data(&request, buf);
                        return connection.finish(permit);
                    }
                    Err(error) => Err(error),
                },
                Some(Command::Write) => unaligned.write(request.offset, &payload, fua).await,
                Some(Command::WriteZeroes) => {
                    let flags = ZeroFlags { no_hole: request.flags & proto::FLAG_NO_HOLE != 0, fua };
                    unaligned.write_zeroes(range, flags).await
                }
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
            Command::WriteZeroes => {
                let flags = ZeroFlags { no_hole: request.flags & proto::FLAG_NO_HOLE != 0, fua };
                self.bdev.write_zeroes(offset, len, flags).await
            }
            Command::Cache => self.bdev.prefetch(offset, len).await,
            Command::Read | Command::Write | Command::Disconnect | Command::BlockStatus => {
                Err(Error::new(ErrorKind::Internal, "carried out elsewhere"))
            }
        }
    }

    fn reply(&self, request: &Request, result: &Result<()>) {
        match result {
            Ok(()) => self.reply_ok(request),
            Err(error) => self.reply_error(request, error),
        }
    }

    fn reply_ok(&self, request: &Request) {
        let mut output = self.output.borrow_mut();
        if self.extended() || self.structured() && request.command == Some(Command::Read) {
            proto::none_chunk(output.batch(), request.reply_to(self.extended()));
        } else {
            proto::simple_reply(output.batch(), request.cookie, 0);
        }
        output.end_reply();
    }

    fn reply_error(&self, request: &Request, error: &Error) {
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

    fn reply_data(&self, request: &Request, buf: IoBuf) {
        debug_assert_eq!(buf.len(), request.length as usize, "a bdev fills the buffer or fails (INV-7)");
        let mut output = self.output.borrow_mut();
        self.read_header(output.batch(), request);
        if buf.len() <= 8 << 10 {
            output.batch().extend_from_slice(&buf);
        } else {
            output.push_buf(buf);
        }
        output.end_reply();
    }

    /// A task has replied: the write loop sends it together with what else is ready.
    fn finish(&self, permit: Permit) {
        drop(permit);
        self.dirty.set(true);
        self.wake_writer();
    }

    fn wake_writer(&self) {
        if let Some(waker) = self.writer.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Send what there is, unless the socket is known to be full.
    fn flush(&self) {
        if self.blocked.get() || self.broken.get() || self.output.borrow().is_empty() {
            return;
        }
        let flushed = self.output.borrow_mut().flush(&self.socket);
        match flushed {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => {
                self.blocked.set(true);
                self.wake_writer();
            }
            Err(_) => self.set_broken(),
        }
        if !self.output.borrow().is_over_high_water()
            && let Some(waker) = self.reader.borrow_mut().take()
        {
            waker.wake();
        }
    }

    fn set_broken(&self) {
        self.broken.set(true);
        self.socket.shutdown();
        self.wake_writer();
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Wait until the output is small enough to take more requests.
    async fn room_to_send(&self) {
        poll_fn(|context| {
            if self.broken.get() || !self.output.borrow().is_over_high_water() {
                return Poll::Ready(());
            }
            *self.reader.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Let other tasks of this reactor run when they are ready, and now and then in any case.
    async fn take_turns(&self) {
        self.turn.set(self.turn.get() + 1);
        if self.turn.get() >= TURN || exec::has_ready() {
            self.turn.set(0);
            exec::yield_now().await;
        }
    }

    /// Receive more; false when the client is gone or told to go.
    async fn receive_more(&self, receive: &mut Receive) -> bool {
        self.take_turns().await;
        loop {
            if self.session.is_closing() {
                return false;
            }
            match receive.fill(&self.socket) {
                Ok(0) => return false,
                Ok(_) => {
                    socket_io::note_activity(self.session.id());
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
            let quiet = self.account.requests() == 0 && !self.blocked.get();
            let attempt = || match receive.fill(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                other => Some(other),
            };
            match if quiet { socket_io::spin(attempt) } else { None } {
                Some(Ok(count)) => {
                    socket_io::note_activity(self.session.id());
                    return count > 0;
                }
                Some(Err(_)) => return false,
                None => socket_io::readable(self.socket.raw_fd()).await,
            }
        }
    }

    /// Receive the rest of a large payload into its own buffer, then start the write.
    async fn receive_payload(self: &Rc<Self>, receive: &mut Receive, request: Request, have: usize) -> bool {
        let permit = self.account.take(request.length as usize).await;
        let mut buf = IoBuf::new(request.length as usize);
        buf[..have].copy_from_slice(receive.data());
        receive.consume(have);
        let mut filled = have;
        while filled < buf.len() {
            match receive.fill_payload(&self.socket, &mut buf[filled..]) {
                Ok((_, 0)) => return false,
                Ok((own, _)) => filled += own,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flush();
                    let more = socket_io::readable(self.socket.raw_fd());
                    if let exec::Either::Right(()) = exec::race(more, exec::sleep(PAYLOAD_STALL_TIME)).await {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        socket_io::note_activity(self.session.id());
        if self.is_unaligned(&request) {
            self.start_unaligned(request, buf, permit);
        } else if let Some(result) = self.write_in_place(&request, &buf) {
            self.reply(&request, &result);
        } else {
            self.start_write(request, buf, permit);
        }
        true
    }

    /// Read past a payload that is not wanted.
    async fn skip_payload(&self, receive: &mut Receive, mut left: u64) -> bool {
        loop {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(receive.data().len());
            receive.consume(now);
            left -= now as u64;
            if left == 0 {
                return true;
            }
            if !receive_some(&self.socket, receive).await {
                return false;
            }
        }
    }

    /// Sends what tasks have replied, and whatever waits for a full socket.
    async fn write_loop(self: Rc<Self>) {
        loop {
            poll_fn(|context| {
                let wanted = self.blocked.get() || self.dirty.get() || self.broken.get() || self.finished.get();
                if wanted {
                    return Poll::Ready(());
                }
                *self.writer.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            if self.broken.get() || self.finished.get() {
                return;
            }
            self.dirty.set(false);
            if self.blocked.get() {
                socket_io::writable(self.socket.raw_fd()).await;
                self.blocked.set(false);
            }
            self.flush();
        }
    }

    /// Finish what is in flight and deliver its answers; bounded when the client takes none.
    async fn drain(&self) {
        self.account.idle().await;
        let deadline = exec::now() + DRAIN_TIME;
        self.flush();
        while !self.broken.get() && !self.output.borrow().is_empty() {
            let sent = poll_fn(|context| {
                if self.broken.get() || !self.output.borrow().is_over_high_water() && self.output.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.reader.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            });
            if matches!(exec::race(sent, exec::sleep_until(deadline)).await, exec::Either::Right(())) {
                break;
            }
        }
        self.finished.set(true);
        self.wake_writer();
    }
}
