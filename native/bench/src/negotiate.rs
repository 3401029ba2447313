//! The handshake: connect, ask for the export, enter the transmission phase.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ubi_bench::sys;

use crate::args::{Args, Server};

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const ACK: u32 = 1;
const INFO: u32 = 3;
const ERROR_BIT: u32 = 1 << 31;
const REPLY_MAX: u32 = 1 << 20;
/// A server that says nothing for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
const SEND_BUFFER_BYTES: i32 = 1 << 20;

/// A connected socket of either kind.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// What came of the handshake.
#[derive(Debug)]
pub struct Agreed {
    pub stream: Stream,
    pub size_bytes: u64,
    pub structured: bool,
}

/// Connect as the arguments say.
///
/// # Errors
/// What went wrong, with the server's own words where it has some.
pub fn connect(args: &Args) -> Result<Agreed, String> {
    let failed = |error: io::Error| format!("{:?}: {error}", args.server);
    let mut stream = Stream::open(&args.server).map_err(failed)?;
    greet(&mut stream)?;
    let structured = args.structured && option(&mut stream, STRUCTURED_REPLY, &[], |_| {}).is_ok();
    let mut size_bytes = None;
    let name_len = u32::try_from(args.export.len()).map_err(|_| "a very long name".to_owned())?;
    let request = [&name_len.to_be_bytes(), args.export.as_bytes(), &[0; 2]].concat();
    option(&mut stream, GO, &request, |info| {
        if let Some((&[0, 0], rest)) = info.split_first_chunk()
            && let Some(size) = rest.first_chunk()
        {
            size_bytes = Some(u64::from_be_bytes(*size));
        }
    })?;
    let size_bytes = size_bytes.ok_or("the server did not tell the export's size")?;
    stream.set_nonblocking(args.busy_poll).map_err(failed)?;
    Ok(Agreed { stream, size_bytes, structured })
}

fn greet(stream: &mut Stream) -> Result<(), String> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).map_err(|error| format!("greeting: {error}"))?;
    if greeting[..8] != *b"NBDMAGIC" || greeting[8..16] != *OPTION_MAGIC {
        return Err("not an NBD server of the newstyle kind".into());
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]) & FIXED_NEWSTYLE_NO_ZEROES;
    stream.write_all(&u32::from(flags).to_be_bytes()).map_err(|error| format!("greeting: {error}"))
}

/// Send an option and hand over each INFO until it is acknowledged.
fn option(stream: &mut Stream, number: u32, data: &[u8], mut info: impl FnMut(&[u8])) -> Result<(), String> {
    let failed = |error: io::Error| format!("option {number}: {error}");
    let length = u32::try_from(data.len()).map_err(|_| "a very long option".to_owned())?;
    let request = [&OPTION_MAGIC[..], &number.to_be_bytes(), &length.to_be_bytes(), data].concat();
    stream.write_all(&request).map_err(failed)?;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).map_err(failed)?;
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, length) = (word(12), word(16));
        if header[..8] != REPLY_MAGIC.to_be_bytes() || word(8) != number || length > REPLY_MAX {
            return Err(format!("option {number}: a reply that makes no sense"));
        }
        let mut reply = vec![0; length as usize];
        stream.read_exact(&mut reply).map_err(failed)?;
        match kind {
            ACK => return Ok(()),
            INFO => info(&reply),
            _ if kind & ERROR_BIT != 0 => {
                let code = kind & !ERROR_BIT;
                return Err(format!("option {number}: refused ({code}): {}", String::from_utf8_lossy(&reply)));
            }
            _ => {}
        }
    }
}

impl Stream {
    fn open(server: &Server) -> io::Result<Self> {
        let stream = match server {
            Server::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Server::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        sys::set_send_buffer(stream.as_fd(), SEND_BUFFER_BYTES)?;
        stream.set_read_timeout(PATIENCE)?;
        Ok(stream)
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(nonblocking),
            Self::Tcp(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write_vectored(parts),
            Self::Tcp(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
