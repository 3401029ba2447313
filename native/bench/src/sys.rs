//! The few system calls that the standard library lacks.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Let this thread run on one CPU only.
///
/// # Errors
/// EINVAL for a CPU that this process may not use.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    let mut mask = [0u64; 16];
    let word = mask.get_mut(cpu / 64).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    *word = 1 << (cpu % 64);
    // SAFETY: the kernel reads size_of_val(&mask) bytes of `mask`, which lives until the call returns.
    let result = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&mask), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// User and system time of this process in seconds.
pub fn cpu_time() -> (f64, f64) {
    // SAFETY: rusage is integers only, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one rusage, for which `usage` is exclusive.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    debug_assert_eq!(result, 0, "RUSAGE_SELF and a valid pointer cannot fail");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}

/// Wait until `socket` can be read, has ended or is broken; false when none of it happens in `limit`.
///
/// Unlike a blocking receive it is not disturbed on a Unix socket by the server's reading of what was sent: the kernel
/// wakes a blocked receiver for that too.
pub fn wait_readable(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the kernel reads and writes one pollfd, for which `entry` is exclusive.
    match unsafe { libc::poll(&raw mut entry, 1, limit_ms) } {
        -1 => Err(io::Error::last_os_error()),
        count => Ok(count > 0),
    }
}

/// Ask for a send buffer of `bytes`; the system may give less.
///
/// # Errors
/// What setsockopt says.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: the kernel reads the four bytes of `bytes`, which lives until the call returns; the descriptor is open
    // as long as `socket` borrows it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            mem::size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn pin_to_a_cpu_that_does_not_exist_fails() {
        assert!(pin_to(1023).is_err());
        assert!(pin_to(usize::MAX).is_err());
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let before = cpu_time();
        while cpu_time().0 + cpu_time().1 - before.0 - before.1 < 0.002 {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_socket_is_readable_once_there_is_something_or_never_will_be() {
        use std::io::Write;
        let (socket, mut peer) = UnixStream::pair().expect("a pair");
        assert!(!wait_readable(socket.as_fd(), Duration::from_millis(1)).expect("poll"));
        peer.write_all(b"x").expect("room");
        assert!(wait_readable(socket.as_fd(), Duration::from_secs(10)).expect("poll"));
        let (socket, peer) = UnixStream::pair().expect("a pair");
        drop(peer);
        assert!(wait_readable(socket.as_fd(), Duration::from_secs(10)).expect("poll"));
    }

    #[test]
    fn send_buffer_is_set() {
        let (socket, _peer) = UnixStream::pair().expect("a pair");
        set_send_buffer(socket.as_fd(), 1 << 16).expect("setsockopt");
    }
}
