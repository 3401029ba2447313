//! Descriptors that travel with the bytes of a Unix socket (SCM_RIGHTS).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::socket::Socket;

/// Descriptors that one receive takes; more in one message are an error.
const MAX_FDS: usize = 32;
const SPACE: usize = 24 + MAX_FDS * size_of::<RawFd>();

/// Room for control messages, aligned as they must be.
#[repr(C, align(8))]
struct Control([u8; SPACE]);

/// Receive what is there into `buf`, and the descriptors that came with it; Ok(0) is the end of the stream.
///
/// # Errors
/// `WouldBlock`; `InvalidData` when more descriptors came than anybody needs: those that arrived are closed.
pub fn recv(socket: &Socket, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control([0; SPACE]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = SPACE as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message refers to live, exclusive memory.
    let received = unsafe { libc::recvmsg(socket.raw_fd(), &raw mut message, flags) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the control buffer as far as msg_controllen says.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR gave lies in the control buffer.
        let libc::cmsghdr { cmsg_len: len, cmsg_level: level, cmsg_type: kind } = unsafe { *header };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: the data follow the header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            let head = data as usize - header as usize;
            for index in 0..len.saturating_sub(head) / size_of::<RawFd>() {
                // SAFETY: so many descriptors are there by the header's length.
                let place = unsafe { data.add(index) };
                // SAFETY: as above; it may not be aligned.
                let fd = unsafe { place.read_unaligned() };
                // SAFETY: the kernel made the descriptor for this process and nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: both pointers are those of this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    Ok(received)
}

/// Send what fits of `data`, the descriptors with its first byte.
pub fn send(socket: &Socket, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let Some(fd) = fd else { return socket.send(data) };
    let mut control = Control([0; SPACE]);
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: the macro computes with integers.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as _;
    // SAFETY: the control buffer has room for a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the macro computes with integers.
    let len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) };
    // SAFETY: `header` points into the control buffer.
    let place = unsafe { &mut *header };
    place.cmsg_level = libc::SOL_SOCKET;
    place.cmsg_type = libc::SCM_RIGHTS;
    place.cmsg_len = len as _;
    // SAFETY: the data follow the header.
    let target = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
    // SAFETY: the control buffer has room for one descriptor behind its header.
    unsafe { target.write_unaligned(fd.as_raw_fd()) };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message refers to live memory that the kernel only reads.
    let sent = unsafe { libc::sendmsg(socket.raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::memfd;

    #[test]
    fn a_descriptor_travels_with_its_bytes() {
        let (left, right) = UnixStream::pair().expect("socketpair");
        let (left, right) = (Socket::from(OwnedFd::from(left)), Socket::from(OwnedFd::from(right)));
        let file = memfd::sealed("x", 4096).expect("memfd");
        assert_eq!(send(&left, b"hello", Some(file.as_fd())).expect("send"), 5);
        let (mut buf, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv(&right, &mut buf, &mut fds).expect("recv"), 5);
        assert_eq!(fds.len(), 1);
        assert_eq!(send(&left, b"x", None).expect("send"), 1);
        assert_eq!(recv(&right, &mut buf, &mut fds).expect("recv"), 1);
        assert_eq!(fds.len(), 1);
    }
}
