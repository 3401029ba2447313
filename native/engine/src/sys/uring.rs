//! io_uring behind a safe face: whatever the kernel may still touch is owned here until its completion.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::op::{Completion, Op};

const ENTRIES: u32 = 512;
/// Kernel workers of a ring that may wait for storage at once. The default, four a CPU, is fewer than the stripes that
/// one volume fetches at a time: a slow image would keep every other volume's syncs waiting (INV-9).
const WORKERS_MAX: u32 = 256;
/// user_data of completions that nobody waits for.
const IGNORED: u64 = u64::MAX;

/// IORING_ENTER_GETEVENTS of io_uring_enter(2).
const ENTER_GETEVENTS: u32 = 1;

/// Operations that are told to the kernel together: it holds back what it is told at once until it has taken all of it,
/// and a device that has to wait for many is idle meanwhile.
const SUBMIT_BATCH: usize = 8;

/// Completions that are taken together: before the next ones are looked at, what these lead to is on its way.
const REAP_BATCH: usize = 8;

/// Longest transfer of one submission in bytes, a multiple of every block size; the rest is a short transfer.
const MAX_TRANSFER: u32 = 1 << 30;

/// What a submission was for; `T` says whom to tell.
enum InFlight<T> {
    Op(Op, T),
    Poll(T),
    /// A poll that was cancelled; its completion is still to come.
    Forgotten,
}

/// A completed submission.
pub enum Event<T> {
    Op(Completion, T),
    /// The descriptor is ready (or broken).
    Poll(T),
}

/// A ring and everything that is in flight on it. Used by the thread that made it.
pub struct Ring<T> {
    ring: IoUring,
    in_flight: Slab<InFlight<T>>,
    ops: usize,
    /// With DEFER_TASKRUN completions appear only when the ring is entered.
    deferred: bool,
}

impl<T> Ring<T> {
    /// Make a ring; newer set-up flags are left out where the kernel does not know them.
    ///
    /// # Errors
    /// What io_uring_setup(2) says: EPERM or ENOSYS where io_uring is not allowed.
    pub fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let (ring, deferred) = match builder.build(ENTRIES) {
            Ok(ring) => (ring, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (IoUring::new(ENTRIES)?, false),
            Err(error) => return Err(error),
        };
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let mut workers = [WORKERS_MAX, 0]; // bounded ones; 0 leaves the others as they are
        match ring.submitter().register_iowq_max_workers(&mut workers) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error), // EINVAL: before Linux 5.15
            _ => {}
        }
        Ok(Self { ring, in_flight: Slab::with_capacity(256), ops: 0, deferred })
    }

    /// Storage operations that the kernel has not finished.
    pub fn ops_in_flight(&self) -> usize {
        self.ops
    }

    /// Start `op`; its memory stays here until the completion.
    pub fn start(&mut self, op: Op, tag: T) {
        self.ops += 1;
        let key = self.in_flight.insert(InFlight::Op(op, tag));
        let InFlight::Op(op, _) = &mut self.in_flight[key] else { unreachable!("just inserted") };
        let entry = entry_of(op).user_data(key as u64);
        self.push(entry);
        if self.ring.submission().len() >= SUBMIT_BATCH {
            // What does not go now goes with the next entering.
            let _ = self.ring.submit();
        }
    }

    /// Tell once when `fd` is readable (or writable). The caller keeps `fd` open until then, or cancels.
    pub fn poll(&mut self, fd: RawFd, writable: bool, tag: T) -> usize {
        let events = if writable { libc::POLLOUT } else { libc::POLLIN | libc::POLLRDHUP };
        let key = self.in_flight.insert(InFlight::Poll(tag));
        self.push(opcode::PollAdd::new(types::Fd(fd), events as u32).build().user_data(key as u64));
        key
    }

    /// Take a poll back; nothing is told for it any more.
    pub fn cancel_poll(&mut self, key: usize) {
        if let Some(slot @ InFlight::Poll(_)) = self.in_flight.get_mut(key) {
            *slot = InFlight::Forgotten;
            self.push(opcode::PollRemove::new(key as u64).build().user_data(IGNORED));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: the memory and descriptors that the entry names are owned by `in_flight` (through the
            // operation's buffers and shared file) until the completion, which `reap` waits for.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: let the kernel take what is there.
            if let Err(error) = self.ring.submit() {
                assert!(is_retry(&error), "io_uring_enter: {error}");
            }
        }
    }

    /// Whether submissions wait to be told to the kernel.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Whether `reap` would take something now.
    pub fn has_reapable(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether completions are there, or would be after entering the kernel.
    pub fn has_completions(&mut self) -> bool {
        self.has_reapable() || self.ring.submission().taskrun()
    }

    /// Submit, and let finished work appear, without waiting.
    pub fn kick(&mut self) -> io::Result<()> {
        let pending = self.ring.submission().len();
        let flags = if self.deferred { ENTER_GETEVENTS } else { 0 };
        if pending == 0 && !self.deferred {
            return Ok(());
        }
        // SAFETY: no argument is passed, and entries in the queue are sound, see `push`.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending as u32, 0, flags, None) };
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_retry(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Submit and wait for a completion, at most `timeout` (None: for ever).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let spec = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&spec);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_retry(&error) || error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Take completions that have appeared, a few at a time.
    pub fn reap(&mut self, events: &mut Vec<Event<T>>) {
        let in_flight = &mut self.in_flight;
        for cqe in self.ring.completion().take(REAP_BATCH) {
            let key = cqe.user_data();
            if key == IGNORED {
                continue;
            }
            match in_flight.remove(key as usize) {
                InFlight::Op(op, tag) => {
                    self.ops -= 1;
                    let result = usize::try_from(cqe.result()).map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
                    events.push(Event::Op(Completion { result, op }, tag));
                }
                InFlight::Poll(tag) => events.push(Event::Poll(tag)),
                InFlight::Forgotten => {}
            }
        }
    }
}

impl<T> Drop for Ring<T> {
    /// Wait for what the kernel still works on: its memory must not go before.
    fn drop(&mut self) {
        let mut events = Vec::new();
        while self.ops > 0 {
            if self.wait(None).is_err() {
                // The kernel may still write into these buffers: leaking them is the only safe way out.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
            self.reap(&mut events);
            events.clear();
        }
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// The entry of an operation. What waits for another machine goes to a kernel worker at once: such file systems may
/// wait in the submission itself, and with it the whole reactor (INV-4).
fn entry_of(op: &mut Op) -> squeue::Entry {
    let remote = match op {
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::ReadSg { file, .. }
        | Op::WriteSg { file, .. }
        | Op::Sync { file }
        | Op::Fallocate { file, .. } => file.is_remote(),
    };
    let flags = if remote { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    plain_entry_of(op).flags(flags)
}

fn plain_entry_of(op: &mut Op) -> squeue::Entry {
    match op {
        Op::Read { file, offset, buf, start } => {
            let rest = &mut buf[*start..];
            let len = u32::try_from(rest.len()).unwrap_or(MAX_TRANSFER);
            opcode::Read::new(types::Fd(file.raw_fd()), rest.as_mut_ptr(), len).offset(*offset).build()
        }
        Op::Write { file, offset, data, dsync } => {
            let len = u32::try_from(data.len()).unwrap_or(MAX_TRANSFER);
            let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(types::Fd(file.raw_fd()), data.as_ptr(), len).offset(*offset).rw_flags(flags).build()
        }
        Op::ReadSg { file, offset, target } => match *target.iovecs() {
            [one] => {
                let len = u32::try_from(one.iov_len).unwrap_or(MAX_TRANSFER);
                opcode::Read::new(types::Fd(file.raw_fd()), one.iov_base.cast(), len).offset(*offset).build()
            }
            ref more => {
                let (first, count) = (more.as_ptr(), more.len() as u32);
                opcode::Readv::new(types::Fd(file.raw_fd()), first, count).offset(*offset).build()
            }
        },
        Op::WriteSg { file, offset, source, dsync } => {
            let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
            match *source.iovecs() {
                [one] => {
                    let len = u32::try_from(one.iov_len).unwrap_or(MAX_TRANSFER);
                    let entry = opcode::Write::new(types::Fd(file.raw_fd()), one.iov_base.cast_const().cast(), len);
                    entry.offset(*offset).rw_flags(flags).build()
                }
                ref more => {
                    let entry = opcode::Writev::new(types::Fd(file.raw_fd()), more.as_ptr(), more.len() as u32);
                    entry.offset(*offset).rw_flags(flags).build()
                }
            }
        }
        Op::Sync { file } => opcode::Fsync::new(types::Fd(file.raw_fd())).flags(types::FsyncFlags::DATASYNC).build(),
        Op::Fallocate { file, mode, offset, len } => {
            opcode::Fallocate::new(types::Fd(file.raw_fd()), *len).offset(*offset).mode(mode.bits()).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buf::{IoBuf, IoData};
    use super::super::file::{OpenOptions, StorageFile};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_write_then_a_read_through_the_ring() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("f");
        std::fs::write(&path, [0u8; 8192]).expect("write");
        let options = OpenOptions { write: true, ..OpenOptions::default() };
        let file = Arc::new(StorageFile::open(&path, options).expect("open"));
        let mut ring: Ring<u32> = Ring::new().expect("io_uring");
        let data = IoData::new(IoBuf::from_slice(&[9; 4096]));
        ring.start(Op::Write { file: Arc::clone(&file), offset: 4096, data, dsync: true }, 1);
        let mut events = Vec::new();
        ring.wait(None).expect("wait");
        ring.reap(&mut events);
        assert!(matches!(&events[..], [Event::Op(Completion { result: Ok(4096), .. }, 1)]));
        events.clear();
        ring.start(Op::Read { file, offset: 4000, buf: IoBuf::new(200), start: 0 }, 2);
        while events.is_empty() {
            ring.wait(None).expect("wait");
            ring.reap(&mut events);
        }
        let Some(Event::Op(Completion { result: Ok(200), op: Op::Read { buf, .. } }, 2)) = events.pop() else {
            panic!("a full read")
        };
        assert_eq!((buf[95], buf[96]), (0, 9));
    }

    #[test]
    fn completions_are_taken_a_few_at_a_time_and_none_is_lost() {
        let file = Arc::new(StorageFile::open("/dev/zero".as_ref(), OpenOptions::default()).expect("open"));
        let mut ring: Ring<usize> = Ring::new().expect("io_uring");
        for tag in 0..3 * REAP_BATCH {
            ring.start(Op::Read { file: Arc::clone(&file), offset: 0, buf: IoBuf::new(512), start: 0 }, tag);
        }
        let (mut events, mut seen) = (Vec::new(), vec![0; 3 * REAP_BATCH]);
        while ring.ops_in_flight() > 0 {
            if !ring.has_reapable() {
                ring.wait(None).expect("wait");
            }
            ring.reap(&mut events);
            assert!((1..=REAP_BATCH).contains(&events.len()), "{}", events.len());
            for event in events.drain(..) {
                let Event::Op(Completion { result: Ok(512), .. }, tag) = event else { panic!("a full read") };
                seen[tag] += 1;
            }
        }
        assert_eq!(seen, [1; 3 * REAP_BATCH]);
    }

    #[test]
    fn a_cancelled_poll_is_silent() {
        let bell = super::super::eventfd::EventFd::new().expect("eventfd");
        let mut ring: Ring<u32> = Ring::new().expect("io_uring");
        let key = ring.poll(bell.raw_fd(), false, 5);
        ring.cancel_poll(key);
        bell.signal();
        ring.wait(Some(Duration::from_millis(50))).expect("wait");
        let mut events = Vec::new();
        ring.reap(&mut events);
        assert!(events.is_empty());
    }
}
