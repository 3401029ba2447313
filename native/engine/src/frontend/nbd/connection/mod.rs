//! One NBD client: handshake, then requests until it leaves.
//!
//! Requests are taken many per receive and answered many per send. What the bdev can do at once is done in
//! place; everything else runs as a task, so a request that waits for a stripe holds up nobody (INV-4).
//!
//! - `negotiate`: the handshake on the socket
//! - `nudge`: looking for the next requests once replies are sent
//! - `payload`: receiving large writes
//! - `check`, `execute`, `reply`: one request

mod check;
mod execute;
mod negotiate;
mod nudge;
mod payload;
mod reply;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::MAX_PAYLOAD;
use super::export::{Export, Session};
use super::listener::Shared;
use super::output::{Flushed, Output};
use super::proto::{self, Request};
use super::receive::Receive;
use super::stream::Stream;
use crate::bdev::Bdev;
use crate::error::{Error, ErrorKind};
use crate::frontend::budget::{Account, Permit};
use crate::reactor::{exec, give_way, io as socket_io};
use crate::sys::socket::Socket;
use nudge::Nudge;
use payload::PayloadPipes;

/// A client has this long to say which export it wants.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// A client that takes no replies has this long before its drain is given up.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// Receives in a row after which other tasks get a turn, whether they ask or not.
const TURN: u32 = 8;
/// Memory of replies that a client has not taken, bytes, from which on it is busy for longer than the next ones take to
/// get to it: four of 4 KiB, one a message, with what the kernel adds to each.
const UNTAKEN_MIN: usize = 16 << 10;

/// Serve `socket` to its end. Whatever the client does, only its own connection ends (INV-9).
pub async fn serve(socket: Arc<Socket>, id: u64, shared: &Arc<Shared>) {
    socket.tune();
    let stream = Stream::new(socket);
    let mut receive = Receive::new();
    let agreed = exec::race(negotiate::negotiate(&stream, id, shared, &mut receive), exec::sleep(HANDSHAKE_TIME)).await;
    let exec::Either::Left(Some(session)) = agreed else {
        return stream.close();
    };
    let connection = Rc::new(Connection::new(stream, session, shared));
    receive.set_header_len(connection.header_len());
    exec::spawn(Rc::clone(&connection).write_loop());
    connection.read_loop(&mut receive).await;
    connection.carry_out_waiting();
    connection.drain().await;
    connection.stream.close();
}

/// A client in transmission.
struct Connection {
    stream: Stream,
    session: Session,
    shared: Arc<Shared>,
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
    /// Where large payloads wait for the file that they are meant for.
    pipes: PayloadPipes,
    /// The client has got replies and is about to send more.
    nudge: Nudge,
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
    fn new(stream: Stream, session: Session, shared: &Arc<Shared>) -> Self {
        let bdev = Arc::clone(&session.export().bdev);
        Self {
            stream,
            session,
            shared: Arc::clone(shared),
            bdev,
            account: Account::new(Arc::clone(shared.budget())),
            output: RefCell::new(Output::default()),
            blocked: Cell::new(false),
            broken: Cell::new(false),
            finished: Cell::new(false),
            dirty: Cell::new(false),
            turn: Cell::new(0),
            pipes: PayloadPipes::default(),
            nudge: Nudge::default(),
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
            if matches!(cut, Cut::NeedMore) && (self.receive_ahead(receive) || self.gather(receive)) {
                continue;
            }
            let payload_follows = matches!(cut, Cut::Payload(..));
            if !payload_follows {
                self.carry_out_waiting();
            }
            // A payload that is here already is taken first: the client has no use yet for being woken.
            if !payload_follows || self.is_time_to_send() {
                self.flush();
            }
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
            let Some(request) = parsed else {
                self.note_out_of_step(data);
                return Cut::End;
            };
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
                Ok(()) => {
                    receive.consume(header_len + payload_len);
                    if payload_len > Receive::WHOLE_MAX {
                        receive.expect_payloads();
                    }
                }
                Err(stop) => {
                    if matches!(stop, Cut::End) {
                        receive.consume(header_len);
                    }
                    return stop;
                }
            }
        }
    }

    /// The client, or its kernel, has sent more or less than it said: nothing of what follows can be trusted, and only
    /// this connection can be in this state. Linux clients were seen to do so after interrupted sends.
    fn note_out_of_step(&self, data: &[u8]) {
        let start: String = data.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let message =
            format!("a client's requests are out of step (no request starts with {start}): its connection ends");
        self.shared.warn(&self.export().name, message);
    }

    fn header_len(&self) -> usize {
        if self.extended() { proto::EXTENDED_REQUEST_BYTES } else { proto::REQUEST_BYTES }
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

    /// A full batch, or half of one for a client that has nothing to do meanwhile and may have a CPU, or, while the socket
    /// takes nothing, as much as may wait for it.
    fn is_time_to_send(&self) -> bool {
        let output = self.output.borrow();
        if self.blocked.get() {
            return output.is_over_high_water();
        }
        output.is_batch_full()
            || output.is_batch_half_full() && socket_io::leaves_a_cpu() && self.stream.untaken() == Some(0)
    }

    /// A payload beyond every limit: the error is the last thing that the client hears.
    fn too_large(&self, request: &Request, error: &Error) -> Cut {
        self.reply_error(request, error);
        Cut::End
    }

    /// A task has replied: the write loop sends it together with what else is ready.
    ///
    /// Where much is ready some of it goes first. A disk that finishes many requests at once has nothing to do until the
    /// client's next ones are here, and they come while the rest is put together.
    fn finish(&self, permit: Permit) {
        drop(permit);
        if !self.blocked.get() && self.output.borrow().has_some_replies() {
            self.flush();
            return self.nudge.tell();
        }
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
        if self.blocked.get() || self.broken.get() || self.is_all_sent() {
            return;
        }
        let flushed = self.output.borrow_mut().flush(&self.stream);
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

    /// Whether the socket has everything that there was to say.
    fn is_all_sent(&self) -> bool {
        self.output.borrow().is_empty() && !self.stream.has_unsent()
    }

    fn set_broken(&self) {
        self.broken.set(true);
        self.stream.socket().shutdown();
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
            // On a busy machine the client has run while the answer was being sent: its next request is here.
            if let Some(received) = receive.try_fill(&self.stream) {
                return self.note_received(received);
            }
            let attempt = || receive.try_fill(&self.stream);
            if let Some(received) = if self.is_quiet() { socket_io::spin(attempt) } else { None } {
                return self.note_received(received);
            }
            if let Some(received) = self.wait_readable(receive).await {
                return self.note_received(received);
            }
        }
    }

    /// Wait until the client has sent more. Whenever it was sent replies meanwhile it gets its turn, should it share this
    /// CPU, and what it has sent then is returned.
    async fn wait_readable(&self, receive: &mut Receive) -> Option<io::Result<usize>> {
        self.nudge.forget();
        let mut readable = pin!(socket_io::readable(self.stream.raw_fd()));
        while let exec::Either::Left(()) = exec::race(self.nudge.wait(), readable.as_mut()).await {
            give_way::give_way();
            let received = receive.try_fill(&self.stream);
            if received.is_some() {
                return received;
            }
        }
        None
    }

    /// Receive more before a few replies are sent to a client that has not taken the last ones yet: they would only lie
    /// there, and one large message costs both sides less than many small ones. False: nothing more has come, it is the
    /// turn of others, or a request has come in part, and nobody knows when the rest does.
    fn gather(&self, receive: &mut Receive) -> bool {
        let may = self.has_turns_left() && receive.data().is_empty() && self.is_quiet() && !self.stream.is_encrypted();
        if !may || !self.output.borrow().has_few_replies() {
            return false;
        }
        let is_busy = || self.stream.untaken().is_some_and(|bytes| bytes >= UNTAKEN_MIN);
        self.take_another_turn(socket_io::spin_while(is_busy, || receive.try_fill(&self.stream)))
    }

    /// Whether one more receive leaves it to others of this reactor to run in time.
    fn has_turns_left(&self) -> bool {
        self.turn.get() + 1 < TURN
    }

    /// Go on with what was received without letting others run; false: that is nothing, or an end, which is found again by
    /// who receives next.
    fn take_another_turn(&self, received: Option<io::Result<usize>>) -> bool {
        let Some(Ok(count @ 1..)) = received else { return false };
        self.turn.set(self.turn.get() + 1);
        self.note_received(Ok(count))
    }

    /// Nothing is in flight and nothing waits to be sent.
    fn is_quiet(&self) -> bool {
        self.account.requests() == 0 && !self.blocked.get()
    }

    fn note_received(&self, received: io::Result<usize>) -> bool {
        socket_io::note_activity(self.session.id());
        received.is_ok_and(|count| count > 0)
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
                socket_io::writable(self.stream.raw_fd()).await;
                self.blocked.set(false);
            }
            self.flush();
        }
    }

    /// Finish what is in flight and deliver its answers; bounded when the client takes none.
    async fn drain(&self) {
        self.flush();
        self.account.idle().await;
        let deadline = exec::now() + DRAIN_TIME;
        self.flush();
        while !self.broken.get() && !self.is_all_sent() {
            let sent = poll_fn(|context| {
                if self.broken.get() || self.is_all_sent() {
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
