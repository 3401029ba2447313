//! epoll, one-shot: readiness for the engine that runs without io_uring.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl Interest {
    fn events(self) -> u32 {
        let mut events = libc::EPOLLONESHOT as u32;
        if self.readable {
            events |= (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
        }
        if self.writable {
            events |= libc::EPOLLOUT as u32;
        }
        events
    }
}

/// An epoll instance whose registrations fire once and are then re-armed with `arm`.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Wait for `interest` in `fd` once more.
    pub fn arm(&self, fd: RawFd, interest: Interest) -> io::Result<()> {
        match self.control(libc::EPOLL_CTL_MOD, fd, interest) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.control(libc::EPOLL_CTL_ADD, fd, interest),
            other => other,
        }
    }

    /// Forget `fd`.
    pub fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, Interest::default());
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.events(), u64: fd as u64 };
        // SAFETY: `event` is valid for reads.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Wait for at most `timeout` (None: for ever) and return the descriptors that fired, with what they are ready for.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<(RawFd, Interest)>> {
        const CAPACITY: usize = 256;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; CAPACITY];
        let timeout_ms = timeout.map_or(-1, |time| {
            // Rounded up: waking early would spin through the last millisecond.
            i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: `events` is valid for writes of CAPACITY entries.
        let result =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), CAPACITY as libc::c_int, timeout_ms) };
        let count = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error => return Err(error),
            },
        };
        let ready = |event: &libc::epoll_event| {
            let bits = event.events;
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            let readable = broken || bits & (libc::EPOLLIN | libc::EPOLLRDHUP) as u32 != 0;
            let writable = broken || bits & libc::EPOLLOUT as u32 != 0;
            (event.u64 as RawFd, Interest { readable, writable })
        };
        Ok(events[..count].iter().map(ready).collect())
    }
}
