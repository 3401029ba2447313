//! An NBD client, written from proto.md and sharing nothing with the server.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1 << 0;
pub const NO_HOLE: u16 = 1 << 1;
pub const DF: u16 = 1 << 2;
pub const REQ_ONE: u16 = 1 << 3;
pub const FAST_ZERO: u16 = 1 << 4;
pub const PAYLOAD_LEN: u16 = 1 << 5;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ENOTSUP: u32 = 95;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;
pub const REP_ACK: u32 = 1;
pub const ERR_POLICY: u32 = 0x8000_0002;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Simple,
    Structured,
    Extended,
}

/// How a client wants to be served.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    pub dialect: Dialect,
    pub contexts: &'static [&'static str],
    pub block_sizes: bool,
}

impl Wish {
    pub const fn new(dialect: Dialect) -> Self {
        Self { dialect, contexts: &[], block_sizes: false }
    }
}

/// A reply, put together from its chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replied {
    pub cookie: u64,
    /// The first error; 0 for success.
    pub error: u32,
    /// Where the error was said to be.
    pub error_at: Option<u64>,
    /// What a read has put where, as it came.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Ranges that a read was told to be zeros.
    pub holes: Vec<(u64, u64)>,
    /// For each context id its extents: length and value.
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
    /// Content chunks (data and holes).
    pub content_chunks: usize,
}

impl Replied {
    /// Where a read was told what, in order: start, length, and 'd' for data or 'z' for zeros.
    pub fn content(&self) -> Vec<(u64, u64, char)> {
        let data = self.data.iter().map(|(at, data)| (*at, data.len() as u64, 'd'));
        let mut content: Vec<_> = data.chain(self.holes.iter().map(|&(at, len)| (at, len, 'z'))).collect();
        content.sort_unstable();
        content
    }

    /// The bytes of a read of `length` at `offset`; every byte has to be there once.
    pub fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        assert_eq!(self.error, 0, "the read failed");
        let zeros = self.holes.iter().map(|&(at, len)| (at, vec![0; len as usize]));
        let mut pieces: Vec<(u64, Vec<u8>)> = self.data.iter().cloned().chain(zeros).collect();
        pieces.sort_unstable_by_key(|(at, _)| *at);
        let mut bytes = Vec::new();
        for (at, piece) in pieces {
            assert_eq!(at, offset + bytes.len() as u64, "no gaps, no overlap");
            bytes.extend(piece);
        }
        assert_eq!(bytes.len() as u64, length);
        bytes
    }
}

pub struct Client {
    pub stream: UnixStream,
    dialect: Dialect,
    pub size: u64,
    pub flags: u16,
}

/// Connect and read the greeting; nothing is sent.
pub fn greeted(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut greeting = [0u8; 18];
    stream.read_exact(&mut greeting).expect("greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn go_data(export: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.bytes());
    data.extend((requests.len() as u16).to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

pub fn meta_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.bytes());
    }
    data
}

/// The next option reply: its type and data.
pub fn option_reply(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    let mut header = [0u8; 20];
    stream.read_exact(&mut header).expect("an option reply");
    assert_eq!(header[..8], 0x3_e889_0455_65a9u64.to_be_bytes());
    let mut data = vec![0; word(&header, 16) as usize];
    stream.read_exact(&mut data).expect("its data");
    (word(&header, 12), data)
}

/// Send an option and take its replies up to the last.
pub fn ask(stream: &mut UnixStream, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    stream.write_all(&option(number, data)).expect("send");
    let mut replies = Vec::new();
    loop {
        let (kind, data) = option_reply(stream);
        let is_last = kind == REP_ACK || kind >> 31 == 1;
        replies.push((kind, data));
        if is_last {
            return replies;
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Client {
    pub fn connect(path: &Path, export: &str, wish: &Wish) -> Self {
        Self::try_connect(path, export, wish).expect("the export lets the client in")
    }

    /// Connect; the refusal's number when GO is refused.
    pub fn try_connect(path: &Path, export: &str, wish: &Wish) -> Result<Self, u32> {
        let mut stream = greeted(path);
        stream.write_all(&3u32.to_be_bytes()).expect("client flags");
        let last = |replies: Vec<(u32, Vec<u8>)>| replies.last().expect("an answer").0;
        match wish.dialect {
            Dialect::Simple => {}
            Dialect::Structured => assert_eq!(last(ask(&mut stream, OPT_STRUCTURED_REPLY, b"")), REP_ACK),
            Dialect::Extended => assert_eq!(last(ask(&mut stream, OPT_EXTENDED_HEADERS, b"")), REP_ACK),
        }
        if !wish.contexts.is_empty() {
            let answer = ask(&mut stream, OPT_SET_META_CONTEXT, &meta_data(export, wish.contexts));
            assert_eq!(answer.len(), wish.contexts.len() + 1, "all are there: {answer:?}");
        }
        let requests: &[u16] = if wish.block_sizes { &[3] } else { &[] };
        let answer = ask(&mut stream, OPT_GO, &go_data(export, requests));
        let outcome = last(answer.clone());
        if outcome != REP_ACK {
            return Err(outcome);
        }
        let info = &answer.iter().find(|(_, data)| data.starts_with(&[0, 0])).expect("INFO_EXPORT").1;
        let flags = u16::from_be_bytes([info[10], info[11]]);
        Ok(Self { stream, dialect: wish.dialect, size: long(info, 2), flags })
    }

    pub fn request(&self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        let is_extended = self.dialect == Dialect::Extended;
        let magic: u32 = if is_extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut request = magic.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        if is_extended {
            request.extend(length.to_be_bytes());
        } else {
            request.extend((length as u32).to_be_bytes());
        }
        request
    }

    pub fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64, payload: &[u8]) {
        let payload_flag = if self.dialect == Dialect::Extended && command == WRITE { PAYLOAD_LEN } else { 0 };
        let mut request = self.request(command, flags | payload_flag, cookie, offset, length);
        request.extend(payload);
        self.stream.write_all(&request).expect("send");
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("a reply");
        bytes
    }

    /// The next reply; a simple one to a successful read is followed by `read_length` bytes for `offset`.
    pub fn reply(&mut self, offset: u64, read_length: u64) -> Replied {
        let mut replied = Replied::default();
        loop {
            let magic = self.take(4);
            match word(&magic, 0) {
                0x6744_6698 => {
                    assert_ne!(self.dialect, Dialect::Extended, "simple replies are forbidden");
                    let rest = self.take(12);
                    (replied.error, replied.cookie) = (word(&rest, 0), long(&rest, 4));
                    if replied.error == 0 && read_length > 0 {
                        assert_eq!(self.dialect, Dialect::Simple, "a read is answered by chunks");
                        replied.data.push((offset, self.take(read_length as usize)));
                        replied.content_chunks = 1;
                    }
                    return replied;
                }
                0x668e_33ef => {
                    assert_eq!(self.dialect, Dialect::Structured);
                    let rest = self.take(16);
                    replied.cookie = long(&rest, 4);
                    let payload = self.take(word(&rest, 12) as usize);
                    Self::chunk(&mut replied, &rest, &payload);
                    if rest[1] & 1 == 1 {
                        return replied;
                    }
                }
                0x6e8a_278c => {
                    assert_eq!(self.dialect, Dialect::Extended);
                    let rest = self.take(28);
                    replied.cookie = long(&rest, 4);
                    assert_eq!(long(&rest, 12), offset, "the offset is echoed");
                    let payload = self.take(long(&rest, 20) as usize);
                    Self::chunk(&mut replied, &rest, &payload);
                    if rest[1] & 1 == 1 {
                        return replied;
                    }
                }
                other => panic!("no reply starts with {other:#x}"),
            }
        }
    }

    fn chunk(replied: &mut Replied, header: &[u8], payload: &[u8]) {
        match u16::from_be_bytes([header[2], header[3]]) {
            0 => assert!(payload.is_empty()),
            1 => {
                assert!(payload.len() > 8, "a data chunk has data");
                replied.data.push((long(payload, 0), payload[8..].to_vec()));
                replied.content_chunks += 1;
            }
            2 => {
                assert_eq!(payload.len(), 12);
                replied.holes.push((long(payload, 0), u64::from(word(payload, 8))));
                replied.content_chunks += 1;
            }
            5 => {
                assert!(payload.len() >= 12 && (payload.len() - 4).is_multiple_of(8));
                let extents = payload[4..].chunks_exact(8).map(|pair| (word(pair, 0).into(), word(pair, 4).into()));
                replied.status.push((word(payload, 0), extents.collect()));
            }
            6 => {
                assert_eq!(payload.len(), 8 + 16 * word(payload, 4) as usize, "the count agrees");
                let extents = payload[8..].chunks_exact(16).map(|pair| (long(pair, 0), long(pair, 8)));
                replied.status.push((word(payload, 0), extents.collect()));
            }
            kind @ (0x8001 | 0x8002) => {
                let text = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
                assert_eq!(payload.len(), 6 + text + if kind == 0x8002 { 8 } else { 0 });
                std::str::from_utf8(&payload[6..6 + text]).expect("a message is UTF-8");
                replied.error = word(payload, 0);
                assert_ne!(replied.error, 0);
                replied.error_at = (kind == 0x8002).then(|| long(payload, 6 + text));
            }
            other => panic!("no chunk has type {other}"),
        }
    }

    /// Send a request and take its reply.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> Replied {
        self.send(command, flags, 0x1122_3344_5566_7788, offset, length, payload);
        let replied = self.reply(offset, if command == READ { length } else { 0 });
        assert_eq!(replied.cookie, 0x1122_3344_5566_7788);
        replied
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(self.call(WRITE, 0, offset, bytes.len() as u64, bytes).error, 0);
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.call(READ, 0, offset, length, &[]).bytes(offset, length)
    }

    /// The extents of the one context that was chosen; every one has bytes.
    pub fn status(&mut self, flags: u16, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let mut replied = self.call(BLOCK_STATUS, flags, offset, length, &[]);
        assert_eq!((replied.error, replied.status.len()), (0, 1));
        let extents = replied.status.remove(0).1;
        assert!(!extents.is_empty() && extents.iter().all(|extent| extent.0 > 0));
        extents
    }

    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0u8; 1]), Ok(0) | Err(_))
    }
}
