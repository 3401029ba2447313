//! A pipe: bytes on their way from a socket to a file that are in no buffer of ours (splice(2)).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::file::StorageFile;
use super::socket::Socket;

/// Both ends of a pipe, and how much is in it.
#[derive(Debug)]
pub struct Pipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    len: Cell<usize>,
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl Pipe {
    /// An empty pipe of at least `capacity` bytes in whole pages. It holds less where bytes came in small pieces.
    ///
    /// # Errors
    /// What pipe2(2) says; EPERM when a user's pipes have taken all the memory they may (F_SETPIPE_SZ).
    pub fn new(capacity: usize) -> io::Result<Self> {
        let mut fds = [-1; 2];
        // SAFETY: the array has room for the two descriptors.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just made and nobody else owns them.
        let [read_end, write_end] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let capacity = libc::c_int::try_from(capacity).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the descriptor is open; F_SETPIPE_SZ takes an int.
        if unsafe { libc::fcntl(write_end.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { read_end, write_end, len: Cell::new(0) })
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len.get()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Take at most `most` bytes out of a socket; Ok(0) is the end of its stream.
    ///
    /// # Errors
    /// `WouldBlock` when the socket has nothing or the pipe no room, and what the socket says.
    pub fn fill_from(&self, socket: &Socket, most: usize) -> io::Result<usize> {
        let (from, to) = (socket.raw_fd(), self.write_end.as_raw_fd());
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        // SAFETY: null offsets are allowed: neither end has a position.
        let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), most, flags) };
        let count = check(moved)?;
        self.len.set(self.len() + count);
        Ok(count)
    }

    /// Write all that is in it to a file; what was written is gone from the pipe, also when the rest was not.
    ///
    /// # Errors
    /// What the file says of the first byte that is left; `WriteZero` where it takes none.
    pub fn drain_to(&self, file: &StorageFile, offset: u64) -> io::Result<()> {
        let (from, to) = (self.read_end.as_raw_fd(), file.raw_fd());
        let mut position = offset.cast_signed();
        while !self.is_empty() {
            // SAFETY: `position` is valid for reads and writes; the pipe has no position.
            let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, &raw mut position, self.len(), 0) };
            match check(moved) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.len.set(self.len() - count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Take the next bytes out, `buf` full of them.
    ///
    /// # Errors
    /// `UnexpectedEof` when it holds fewer; what read(2) says.
    pub fn read_exact(&self, buf: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            if self.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let rest = &mut buf[filled..];
            // SAFETY: the pointer and length are those of a live, exclusive slice.
            match check(unsafe { libc::read(self.read_end.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len()) }) {
                Ok(count) => {
                    filled += count;
                    self.len.set(self.len() - count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::super::file::OpenOptions;
    use super::*;

    fn socket_with(data: &[u8]) -> (UnixStream, Socket) {
        let (mut client, server) = UnixStream::pair().expect("a pair");
        client.write_all(data).expect("write");
        (client, Socket::from(OwnedFd::from(server)))
    }

    #[test]
    fn bytes_of_a_socket_arrive_in_a_file_and_no_others() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 20_000]).expect("write");
        let file = StorageFile::open(&path, OpenOptions { write: true, ..OpenOptions::default() }).expect("open");
        let data: Vec<u8> = (0..9_000u32).map(|at| at as u8).collect();
        let (_client, socket) = socket_with(&data);
        let pipe = Pipe::new(64 << 10).expect("a pipe");
        while pipe.len() < 8_192 {
            pipe.fill_from(&socket, 8_192 - pipe.len()).expect("fill");
        }
        pipe.drain_to(&file, 4_096).expect("drain");
        assert!(pipe.is_empty());
        let written = std::fs::read(&path).expect("read");
        assert!(written[..4_096].iter().chain(&written[12_288..]).all(|&byte| byte == 7));
        assert_eq!(written[4_096..12_288], data[..8_192]);
        let mut rest = [0; 808];
        assert_eq!(socket.recv(&mut rest).expect("the rest"), 808);
        assert_eq!(rest[..], data[8_192..]);
    }

    #[test]
    fn what_a_file_does_not_take_is_still_in_the_pipe() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("f");
        std::fs::write(&path, [0; 4_096]).expect("write");
        let file = StorageFile::open(&path, OpenOptions::default()).expect("open for reading");
        let (_client, socket) = socket_with(&[9; 4_096]);
        let pipe = Pipe::new(64 << 10).expect("a pipe");
        assert_eq!(pipe.fill_from(&socket, 1 << 20).expect("fill"), 4_096);
        let error = pipe.drain_to(&file, 0).expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let mut kept = [0; 4_096];
        pipe.read_exact(&mut kept).expect("read");
        assert!(kept.iter().all(|&byte| byte == 9) && pipe.is_empty());
        assert_eq!(pipe.read_exact(&mut kept).expect_err("empty").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_end_and_an_empty_socket_are_told_apart() {
        let (client, socket) = socket_with(&[]);
        let pipe = Pipe::new(4_096).expect("a pipe");
        assert_eq!(pipe.fill_from(&socket, 10).expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
        drop(client);
        assert_eq!(pipe.fill_from(&socket, 10).expect("the end"), 0);
    }
}
