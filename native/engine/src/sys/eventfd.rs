//! An eventfd: a doorbell between threads.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A non-blocking eventfd.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Ring; never blocks (a full counter is already a ring).
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes are passed, as eventfd(2) asks.
        let _ = unsafe { libc::write(self.raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Silence.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight writable bytes are passed, as eventfd(2) asks.
        let _ = unsafe { libc::read(self.raw_fd(), (&raw mut count).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleared_eventfd_can_ring_again() {
        let bell = EventFd::new().expect("eventfd");
        bell.signal();
        bell.signal();
        bell.clear();
        bell.clear();
        bell.signal();
    }
}
