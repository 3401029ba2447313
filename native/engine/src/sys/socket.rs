//! Stream sockets for frontends: listen, accept, receive and send without blocking.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::file::StorageFile;

/// A connected or listening stream socket, non-blocking.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Bytes that may be on their way to one client: large reads leave in one send.
const SEND_BUFFER_BYTES: libc::c_int = 2 << 20;

impl Socket {
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn new_unix() -> io::Result<Self> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Listen on a Unix socket that has mode 0600 from birth.
    ///
    /// # Errors
    /// `AddrInUse` when the path exists, `InvalidInput` when it does not fit sun_path.
    pub fn listen_unix(path: &Path, backlog: i32) -> io::Result<Self> {
        let socket = Self::new_unix()?;
        // Linux gives the node the socket inode's mode, so this is set before the node exists.
        // SAFETY: the descriptor is open.
        if unsafe { libc::fchmod(socket.raw_fd(), 0o600) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let (address, len) = unix_address(path)?;
        // SAFETY: the address and its length describe an initialised sockaddr_un.
        if unsafe { libc::bind(socket.raw_fd(), (&raw const address).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open.
        if unsafe { libc::listen(socket.raw_fd(), backlog) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    /// Whether somebody listens on the Unix socket at `path`.
    pub fn is_live_unix(path: &Path) -> bool {
        let Ok(socket) = Self::new_unix() else { return false };
        let Ok((address, len)) = unix_address(path) else { return false };
        // SAFETY: the address and its length describe an initialised sockaddr_un.
        let result = unsafe { libc::connect(socket.raw_fd(), (&raw const address).cast(), len) };
        result == 0 || io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// Listen on a TCP address.
    pub fn listen_tcp(address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((Self { fd: listener.into() }, bound))
    }

    /// Accept one client; `WouldBlock` when none waits.
    pub fn accept(&self) -> io::Result<Self> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: null address pointers are allowed: the peer's address is not asked for.
        let fd = unsafe { libc::accept4(self.raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Prepare an accepted client: no delay, keepalive, room for large replies.
    pub fn tune(&self) {
        let set = |level, name, value: libc::c_int| {
            // SAFETY: the value is an int, as these options ask.
            unsafe {
                libc::setsockopt(
                    self.raw_fd(),
                    level,
                    name,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            }
        };
        if set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES) < 0 {
            set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER_BYTES);
        }
        set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1); // fails on a Unix socket, which has no delay
    }

    /// Receive what is there; Ok(0) is the end of the stream.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length are those of a live, exclusive slice.
        check(unsafe { libc::recv(self.raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
    }

    /// Receive into `first`, then into `second`.
    pub fn recv_two(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let mut iov = [
            libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
            libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
        ];
        // SAFETY: both iovecs describe live, exclusive slices.
        check(unsafe { libc::readv(self.raw_fd(), iov.as_mut_ptr(), 2) })
    }

    /// Send what fits.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pointer and length are those of a live slice.
        check(unsafe { libc::send(self.raw_fd(), data.as_ptr().cast(), data.len(), flags) })
    }

    /// Send the parts one after another, as much as fits. At most 64 parts are looked at.
    pub fn send_parts(&self, parts: &[&[u8]]) -> io::Result<usize> {
        let mut iov: smallvec::SmallVec<[libc::iovec; 64]> = smallvec::SmallVec::new();
        for part in parts.iter().take(64) {
            iov.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        }
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iov.as_mut_ptr();
        message.msg_iovlen = iov.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message refers to live slices that the kernel only reads.
        check(unsafe { libc::sendmsg(self.raw_fd(), &raw const message, flags) })
    }

    /// Tell the kernel whether more follows at once (MSG_MORE for sendfile's neighbours is TCP_CORK).
    pub fn send_more(&self, data: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_MORE;
        // SAFETY: the pointer and length are those of a live slice.
        check(unsafe { libc::send(self.raw_fd(), data.as_ptr().cast(), data.len(), flags) })
    }

    /// Send part of a file straight from the page cache, as much as fits.
    pub fn send_file(&self, file: &StorageFile, offset: u64, len: usize) -> io::Result<usize> {
        let mut position = offset.cast_signed();
        // SAFETY: `position` is valid for writes; both descriptors are open.
        check(unsafe { libc::sendfile(self.raw_fd(), file.raw_fd(), &raw mut position, len) })
    }

    /// Whether it connects processes of one machine, without a network between them.
    pub fn is_unix(&self) -> bool {
        let (mut domain, mut len) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
        let value = (&raw mut domain).cast();
        // SAFETY: SO_DOMAIN writes one int, for which there is room.
        let result = unsafe { libc::getsockopt(self.raw_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN, value, &raw mut len) };
        result == 0 && domain == libc::AF_UNIX
    }

    /// Memory of what was sent and not received yet, bytes; of a Unix socket it is what the other end has not taken, and
    /// more than what was sent, as buffers are not full.
    pub fn unreceived(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int, for which there is room.
        let result = unsafe { libc::ioctl(self.raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result < 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
    }

    /// Receive nothing more; wakes whoever waits to.
    pub fn stop_reading(&self) {
        // SAFETY: the descriptor is open.
        let _ = unsafe { libc::shutdown(self.raw_fd(), libc::SHUT_RD) };
    }

    /// End both directions; wakes whoever waits for the socket.
    pub fn shutdown(&self) {
        // SAFETY: the descriptor is open.
        let _ = unsafe { libc::shutdown(self.raw_fd(), libc::SHUT_RDWR) };
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self { fd: stream.into() }
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

fn unix_address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero bytes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, len as libc::socklen_t))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_unix_socket_is_private_from_birth_and_seen_as_live() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        assert!(!Socket::is_live_unix(&path));
        let listener = Socket::listen_unix(&path, 16).expect("listen");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Socket::is_live_unix(&path));
        drop(listener);
        assert!(!Socket::is_live_unix(&path));
    }

    #[test]
    fn what_the_other_end_has_not_taken_is_seen_until_it_takes_it() {
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let (one, other) = (Socket::from(OwnedFd::from(one)), Socket::from(OwnedFd::from(other)));
        assert_eq!(one.unreceived(), 0);
        assert_eq!(one.send(&[1; 5000]).expect("send"), 5000);
        assert!(one.unreceived() >= 5000);
        assert_eq!(other.unreceived(), 0, "each direction is counted by who sends");
        let mut buf = [0; 8192];
        assert_eq!(other.recv(&mut buf[..4000]).expect("some"), 4000);
        assert!(one.unreceived() >= 1000);
        assert_eq!(other.recv(&mut buf).expect("the rest"), 1000);
        assert_eq!(one.unreceived(), 0);
    }

    #[test]
    fn a_unix_socket_is_told_from_one_of_a_network() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(Socket::from(OwnedFd::from(one)).is_unix());
        let (tcp, _) = Socket::listen_tcp("127.0.0.1:0".parse().expect("an address")).expect("listen");
        assert!(!tcp.is_unix());
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let path = "x".repeat(108);
        let error = Socket::listen_unix(Path::new(&path), 1).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
