//! One connection under load: always as many requests in flight as were asked for.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ubi_bench::histogram::Histogram;

use crate::args::Args;
use crate::negotiate::{Agreed, PATIENCE, Stream};
use crate::replies::Replies;
use crate::requests::{self, Blocks, Requests};
use crate::sys;

/// Takes the replies to a batch of small reads, or a good part of a large one, with one call.
const RECEIVE_BYTES: usize = 1 << 20;

/// The time that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Instant,
}

impl Window {
    pub fn after(lead: Duration, args: &Args) -> Self {
        let begin = Instant::now() + lead + args.ramp;
        Self { begin, end: begin + args.seconds }
    }

    fn has(&self, when: Instant) -> bool {
        (self.begin..self.end).contains(&when)
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that were finished in the window.
    pub requests: u64,
    /// All requests, before and after it too: what the server's CPU time was spent on.
    pub total: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Receive calls in the window.
    pub recvs: u64,
    pub latency: Histogram,
    pub structured: bool,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.total += other.total;
        self.errors += other.errors;
        self.recvs += other.recvs;
        self.latency.add(&other.latency);
        self.structured |= other.structured;
    }
}

/// Keep the queue full until the window ends, then let it drain.
///
/// # Errors
/// A server that hangs up, breaks the protocol or says nothing for 30 s.
pub fn run(args: &Args, index: usize, agreed: Agreed, window: &Window) -> Result<Outcome, String> {
    let Agreed { mut stream, size_bytes, structured } = agreed;
    let size_bytes = args.size.map_or(size_bytes, |size| size.min(size_bytes));
    let mut blocks = Blocks::new(args, index, size_bytes)?;
    let mut queue = Requests::new(args);
    let mut replies = Replies::new(args.queue_depth, structured, if args.write { 0 } else { args.block_size });
    let mut started = vec![window.begin; args.queue_depth];
    let mut in_flight = vec![true; args.queue_depth];
    let mut left = args.queue_depth;
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut kept = 0;
    let mut outcome = Outcome { structured, ..Outcome::default() };
    let failed = |error: io::Error| format!("connection {index}: {error}");

    (0..args.queue_depth).for_each(|slot| queue.push(slot, blocks.next()));
    queue.send(&mut stream, &mut started).map_err(failed)?;
    while left > 0 {
        let end = kept + receive(&mut stream, &mut buffer[kept..], args.busy_poll).map_err(failed)?;
        let now = Instant::now();
        let (measured, over) = (window.has(now), now >= window.end);
        outcome.recvs += u64::from(measured);
        let mut strays = 0;
        let taken = replies.take(&buffer[..end], |completion| {
            let slot = completion.slot;
            if !in_flight[slot] {
                strays += 1;
                return;
            }
            outcome.total += 1;
            if measured {
                outcome.requests += 1;
                outcome.errors += u64::from(!completion.ok);
                outcome.latency.record(now.duration_since(started[slot]));
            }
            if over {
                in_flight[slot] = false;
                left -= 1;
            } else {
                queue.push(slot, blocks.next());
            }
        })?;
        if strays > 0 {
            return Err(format!("connection {index}: a reply to a request that was answered before"));
        }
        buffer.copy_within(taken..end, 0);
        kept = end - taken;
        queue.send(&mut stream, &mut started).map_err(failed)?;
    }
    requests::disconnect(&mut stream).map_err(failed)?;
    Ok(outcome)
}

/// Receive something, waiting for it as the stream was set up: asleep, or looking again and again.
fn receive(stream: &mut Stream, buffer: &mut [u8], busy_poll: bool) -> io::Result<usize> {
    let begin = Instant::now();
    loop {
        if !busy_poll && !sys::wait_readable(stream.as_fd(), PATIENCE)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {
                std::hint::spin_loop();
            }
            Err(error) => return Err(error),
        }
    }
}
