//! Memory that is shared with the backend, descriptors that are sent to it, and the clock that other processes have.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// CLOCK_MONOTONIC in nanoseconds: the same number in every process.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, for which `time` is exclusive.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    debug_assert_eq!(result, 0, "the clock exists");
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Zeroed memory that other processes may map by its descriptor. Both sides change it at any time, so it is reached by
/// copies and atomic accesses only.
pub struct SharedMemory {
    file: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reached through raw pointers and atomics only, never through references to its bytes.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// # Errors
    /// What memfd_create, ftruncate and mmap say.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: the name is a C string that outlives the call.
        let fd = check(unsafe { libc::memfd_create(c"vhost-load".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: `fd` was just made and nobody else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the call takes integers only.
        check(unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) })?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED);
        Ok(Self { file, base: base.ok_or_else(io::Error::last_os_error)?, len })
    }

    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Where it is mapped here, which is how the backend is told of rings.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "an access leaves the memory");
        // SAFETY: the offset lies within the mapping, asserted above.
        unsafe { self.base.as_ptr().add(offset) }
    }

    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        let source = self.at(offset, buf.len());
        // SAFETY: `source` is valid for the length; `buf` is ours alone and no part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(source, buf.as_mut_ptr(), buf.len()) }
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        let target = self.at(offset, data.len());
        // SAFETY: `target` is valid for the length; `data` is no part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) }
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        let pointer = self.at(offset, 2);
        assert!(pointer.addr().is_multiple_of(2), "an unaligned access");
        // SAFETY: in bounds and aligned; the mapping outlives the reference and is only accessed atomically or by raw
        // copies.
        unsafe { AtomicU16::from_ptr(pointer.cast()) }
    }

    pub fn load(&self, offset: usize) -> u16 {
        u16::from_le(self.word(offset).load(Ordering::Acquire))
    }

    pub fn store(&self, offset: usize, value: u16) {
        self.word(offset).store(value.to_le(), Ordering::Release);
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody holds a pointer into it any more.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A doorbell between this process and the backend.
pub struct Bell(OwnedFd);

impl Bell {
    /// # Errors
    /// What eventfd says.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: `fd` was just made and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes are passed, as eventfd(2) asks.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Sleep until it rings, at most `timeout`, and silence it; whether it rang.
    pub fn wait(&self, timeout: Duration) -> bool {
        if !wait_readable(self.0.as_raw_fd(), timeout) {
            return false;
        }
        let mut count = 0u64;
        // SAFETY: eight writable bytes are passed, as eventfd(2) asks.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
    }
}

/// Wait until a descriptor can be read or has ended; false after `timeout`.
pub fn wait_readable(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd is passed.
    unsafe { libc::poll(&raw mut poll, 1, timeout.as_millis() as libc::c_int) == 1 }
}

/// Room for the control message of so many descriptors.
const CONTROL_BYTES: usize = 256;
const MAX_FDS: usize = 8;

fn message(iov: &mut libc::iovec, control: &mut [u64; CONTROL_BYTES / 8]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message
}

/// Send bytes (as a whole, which small messages on a Unix socket are) and descriptors with them.
///
/// # Errors
/// What sendmsg says.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    assert!(fds.len() <= MAX_FDS, "few descriptors go with a message");
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_BYTES / 8];
    let mut message = message(&mut iov, &mut control);
    let fd_bytes = mem::size_of_val(fds);
    if fd_bytes > 0 {
        // SAFETY: a computation on an integer.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(fd_bytes as u32) } as usize;
        // SAFETY: the message has a control buffer.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: the control buffer is larger than one header and the descriptors, asserted above, so there is one.
        let header = unsafe { &mut *header };
        (header.cmsg_level, header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: a computation on an integer.
        header.cmsg_len = unsafe { libc::CMSG_LEN(fd_bytes as u32) } as usize;
        // SAFETY: the data area lies in the control buffer.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: it has room for the descriptors, asserted above.
        unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, fd_bytes) };
    } else {
        message.msg_control = std::ptr::null_mut();
    }
    // SAFETY: the message describes live buffers.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receive some bytes, and a descriptor if one comes with them.
///
/// # Errors
/// What recvmsg says; the end of the stream.
pub fn receive(socket: BorrowedFd<'_>, buf: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = [0u64; CONTROL_BYTES / 8];
    let mut message = message(&mut iov, &mut control);
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: the message describes live buffers.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the kernel has filled the header in.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null or a header inside of the control buffer.
    if let Some(header) = unsafe { header.as_ref() }
        && (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
    {
        // SAFETY: the data area lies in the control buffer.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: a message of this kind has at least one descriptor.
        let number = unsafe { data.cast::<RawFd>().read_unaligned() };
        // SAFETY: the kernel has just made it for us.
        *fd = Some(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_travels_with_its_bytes() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let bell = Bell::new().expect("eventfd");
        send(here.as_fd(), b"abc", &[bell.descriptor()]).expect("send");
        let (mut buf, mut fd) = ([0; 8], None);
        assert_eq!(receive(there.as_fd(), &mut buf, &mut fd).expect("receive"), 3);
        Bell(fd.expect("a descriptor")).ring();
        assert!(bell.wait(Duration::ZERO) && !bell.wait(Duration::ZERO));
        drop(here);
        assert!(receive(there.as_fd(), &mut buf, &mut None).is_err());
    }

    #[test]
    fn memory_is_read_as_it_was_written() {
        let memory = SharedMemory::new(8192).expect("memory");
        memory.store(4096, 0x1234);
        let mut seen = [0; 3];
        memory.read(4096, &mut seen);
        assert_eq!((seen, memory.load(4096)), ([0x34, 0x12, 0], 0x1234));
    }

    #[test]
    #[should_panic(expected = "leaves the memory")]
    fn an_access_past_the_end_panics() {
        SharedMemory::new(4096).expect("memory").write(4095, &[0; 2]);
    }
}
