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

    /// Take an eventfd that another process made, and stop it from blocking.
    ///
    /// # Errors
    /// `InvalidInput` when it is something else.
    pub fn received(fd: OwnedFd) -> io::Result<Self> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if name.as_os_str() != "anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no eventfd"));
        }
        let event = Self { fd };
        event.set_nonblocking()?;
        Ok(event)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: the command takes an integer.
        if unsafe { libc::fcntl(self.raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
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

    /// Ring an eventfd that others own as well, who may have made it block and filled its counter: a full one is left.
    pub fn signal_if_room(&self) {
        let mut poll = libc::pollfd { fd: self.raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd is passed; a timeout of 0 does not wait.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        if ready == 1 && poll.revents & libc::POLLOUT != 0 {
            self.signal();
        }
    }

    /// Silence; never blocks, whatever another owner of the descriptor has made of its flags.
    pub fn clear(&self) {
        let mut count = 0u64;
        let iov = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: 8 };
        // SAFETY: eight writable bytes are passed, as eventfd(2) asks; -1 is "no position".
        let read = unsafe { libc::preadv2(self.raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
        if read >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP) {
            return;
        }
        // SAFETY: eight writable bytes are passed, as eventfd(2) asks.
        let _ = unsafe { libc::read(self.raw_fd(), (&raw mut count).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_eventfd_that_blocks_holds_nobody_up() {
        let bell = EventFd::new().expect("eventfd");
        let full = u64::MAX - 1;
        // SAFETY: eight readable bytes are passed.
        let written = unsafe { libc::write(bell.raw_fd(), (&raw const full).cast(), 8) };
        assert_eq!(written, 8);
        // SAFETY: the command takes an integer.
        let blocking = unsafe { libc::fcntl(bell.raw_fd(), libc::F_SETFL, 0) };
        assert_eq!(blocking, 0);
        bell.signal_if_room();
        bell.clear();
        bell.signal_if_room();
        bell.clear();
        bell.clear();
    }

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
