//! The NBD protocol's transmission phase on the wire: requests in, reply headers out.
//!
//! Pure and without I/O. Encoders append to a buffer that the caller keeps, so that a batch of replies is one
//! allocation and one send; payloads are the caller's. The handshake is in [`super::handshake`].
//!
//! Source: NBD proto.md, "Transmission phase" and "Values".

use super::batch::Append;

/// Bytes of a request's header (without extended headers).
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a request's header with extended headers.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured reply chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// The same with extended headers.
pub const EXTENDED_CHUNK_HEADER_BYTES: usize = 32;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

// Transmission flags: what an export is and can do.
pub const TRANS_HAS_FLAGS: u16 = 1 << 0;
pub const TRANS_READ_ONLY: u16 = 1 << 1;
pub const TRANS_SEND_FLUSH: u16 = 1 << 2;
pub const TRANS_SEND_FUA: u16 = 1 << 3;
pub const TRANS_ROTATIONAL: u16 = 1 << 4;
pub const TRANS_SEND_TRIM: u16 = 1 << 5;
pub const TRANS_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Only with structured replies: the handshake sets and clears it.
pub const TRANS_SEND_DF: u16 = 1 << 7;
pub const TRANS_CAN_MULTI_CONN: u16 = 1 << 8;
pub const TRANS_SEND_CACHE: u16 = 1 << 10;
pub const TRANS_SEND_FAST_ZERO: u16 = 1 << 11;
/// Only with extended headers: the handshake sets and clears it.
pub const TRANS_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

// Command flags.
/// Durable before the reply.
pub const FLAG_FUA: u16 = 1 << 0;
/// WRITE_ZEROES: keep the space allocated.
pub const FLAG_NO_HOLE: u16 = 1 << 1;
/// READ: one content chunk.
pub const FLAG_DF: u16 = 1 << 2;
/// BLOCK_STATUS: one extent.
pub const FLAG_REQ_ONE: u16 = 1 << 3;
/// WRITE_ZEROES: fail with ENOTSUP unless faster than a write.
pub const FLAG_FAST_ZERO: u16 = 1 << 4;
/// Extended headers: the length is that of a payload that follows.
pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// This chunk is the reply's last.
const REPLY_FLAG_DONE: u16 = 1 << 0;

const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
const CHUNK_ERROR: u16 = (1 << 15) + 1;
const CHUNK_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// Longest text in an error chunk in bytes; strings of 256 are those that every client takes.
///
/// Source: NBD proto.md, "Values": a string SHOULD NOT exceed 256 bytes and MUST NOT exceed 4096.
const MESSAGE_MAX: usize = 256;

/// The error values that NBD knows.
///
/// Source: NBD proto.md, "Error values".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdErrno {
    Eperm = 1,
    Eio = 5,
    Enomem = 12,
    Einval = 22,
    Enospc = 28,
    Eoverflow = 75,
    Enotsup = 95,
    Eshutdown = 108,
}

impl NbdErrno {
    /// The nearest to a positive errno of this system; EIO for whatever NBD has no value for.
    #[inline]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => Self::Eperm,
            libc::ENOMEM => Self::Enomem,
            libc::EINVAL => Self::Einval,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::Enospc,
            libc::EOVERFLOW => Self::Eoverflow,
            libc::EOPNOTSUPP => Self::Enotsup,
            libc::ESHUTDOWN => Self::Eshutdown,
            _ => Self::Eio,
        }
    }
}

/// A positive errno as the `error` field of a reply has it.
#[inline]
pub fn wire_errno(errno: i32) -> u32 {
    NbdErrno::from_errno(errno) as u32
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    #[inline]
    fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    /// `length` bytes follow the header.
    #[inline]
    pub fn has_payload(self) -> bool {
        self == Self::Write
    }

    /// Refused on a read-only export.
    #[inline]
    pub fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// Offset and length name a part of the export.
    #[inline]
    pub fn has_range(self) -> bool {
        !matches!(self, Self::Flush | Self::Disconnect)
    }

    /// The command flags that are valid here; any other is EINVAL.
    ///
    /// FUA is accepted on every command.
    /// Source: NBD proto.md, "Command flags".
    #[inline]
    pub fn allowed_flags(self, structured_replies: bool, extended_headers: bool) -> u16 {
        let payload =
            if extended_headers && matches!(self, Self::Write | Self::BlockStatus) { FLAG_PAYLOAD_LEN } else { 0 };
        FLAG_FUA
            | payload
            | match self {
                Self::WriteZeroes => FLAG_NO_HOLE | FLAG_FAST_ZERO,
                Self::Read if structured_replies => FLAG_DF,
                Self::BlockStatus => FLAG_REQ_ONE,
                Self::Read | Self::Write | Self::Disconnect | Self::Flush | Self::Trim | Self::Cache => 0,
            }
    }
}

/// A request's header. Nothing is known yet about its flags and range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    /// None: a command that NBD does not have, to be answered with EINVAL.
    pub command: Option<Command>,
    /// The client's, echoed in the reply.
    pub cookie: u64,
    pub offset: u64,
    /// Bytes of the range, or of the payload where `payload_len` is not 0.
    pub length: u64,
    /// Bytes that follow the header, wanted or not.
    pub payload_len: u64,
}

impl Request {
    /// None when the magic is wrong: the stream is out of step and the connection has to end.
    #[inline]
    pub fn parse(header: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = header.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, _) = rest.split_first_chunk()?;
        let command = Command::from_wire(u16::from_be_bytes(*command));
        let length = u64::from(u32::from_be_bytes(*length));
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then(|| Self {
            flags: u16::from_be_bytes(*flags),
            command,
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length,
            payload_len: if command.is_some_and(Command::has_payload) { length } else { 0 },
        })
    }

    /// The same with extended headers, where a flag says that a payload follows, whatever the command.
    pub fn parse_extended(header: &[u8; EXTENDED_REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = header.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, _) = rest.split_first_chunk()?;
        let (flags, length) = (u16::from_be_bytes(*flags), u64::from_be_bytes(*length));
        let command = Command::from_wire(u16::from_be_bytes(*command));
        // Nothing follows DISC that anybody would look at; a WRITE has a payload even where the flag was forgotten, as
        // qemu's client does.
        let is_flagged = flags & FLAG_PAYLOAD_LEN != 0 && command != Some(Command::Disconnect);
        let has_payload = is_flagged || command.is_some_and(Command::has_payload);
        (u32::from_be_bytes(*magic) == EXTENDED_REQUEST_MAGIC).then(|| Self {
            flags,
            command,
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length,
            payload_len: if has_payload { length } else { 0 },
        })
    }

    /// Where the chunks of its reply belong.
    #[inline]
    pub fn reply_to(&self, extended: bool) -> To {
        To { cookie: self.cookie, offset: self.offset, extended }
    }

    #[inline]
    pub fn has_fua(&self) -> bool {
        self.flags & FLAG_FUA != 0
    }
}

/// Append a simple reply: `error` is 0 or an [`NbdErrno`]; a successful read's payload follows.
#[inline]
pub fn simple_reply(out: &mut impl Append, cookie: u64, error: u32) {
    let mut reply = [0; SIMPLE_REPLY_BYTES];
    reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&error.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    out.put(&reply);
}

/// What the header of every chunk of a reply repeats, and its form.
#[derive(Debug, Clone, Copy)]
pub struct To {
    pub cookie: u64,
    /// The request's, told with extended headers.
    pub offset: u64,
    pub extended: bool,
}

/// Append a chunk's header, of which `length` bytes have to follow.
#[inline]
fn chunk(out: &mut impl Append, flags: u16, kind: u16, to: To, length: u32) {
    if to.extended {
        return extended_chunk(out, flags, kind, to, u64::from(length));
    }
    let mut header = [0; CHUNK_HEADER_BYTES];
    header[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    header[16..].copy_from_slice(&length.to_be_bytes());
    out.put(&header);
}

fn extended_chunk(out: &mut impl Append, flags: u16, kind: u16, to: To, length: u64) {
    let mut header = [0; EXTENDED_CHUNK_HEADER_BYTES];
    header[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    header[16..24].copy_from_slice(&to.offset.to_be_bytes());
    header[24..].copy_from_slice(&length.to_be_bytes());
    out.put(&header);
}

/// Append the header of a chunk of data; `length` (1 to 2^32 - 9) bytes of `offset` have to follow. `done` ends the reply.
#[inline]
pub fn offset_data(out: &mut impl Append, to: To, offset: u64, length: u32, done: bool) {
    debug_assert!(length > 0 && length <= u32::MAX - 8, "a data chunk carries at least one byte and fits its header");
    chunk(out, u16::from(done) * REPLY_FLAG_DONE, CHUNK_OFFSET_DATA, to, length + 8);
    out.put(&offset.to_be_bytes());
}

/// Append a chunk that says that `length` (not 0) bytes at `offset` are zeros; `done` ends the reply.
#[inline]
pub fn offset_hole(out: &mut impl Append, to: To, offset: u64, length: u32, done: bool) {
    debug_assert!(length > 0, "a hole has at least one byte");
    chunk(out, u16::from(done) * REPLY_FLAG_DONE, CHUNK_OFFSET_HOLE, to, 12);
    out.put(&offset.to_be_bytes());
    out.put(&length.to_be_bytes());
}

/// Append what one metadata context says: extents of a length and a value each, at least one; `done` ends the reply.
pub fn block_status(out: &mut impl Append, to: To, context: u32, extents: &[(u64, u32)], done: bool) {
    debug_assert!(!extents.is_empty(), "a block status has at least one extent");
    if to.extended {
        return block_status_ext(out, to, context, extents, done);
    }
    let length = u32::try_from(4 + 8 * extents.len()).unwrap_or(u32::MAX); // at most 2^20 extents
    chunk(out, u16::from(done) * REPLY_FLAG_DONE, CHUNK_BLOCK_STATUS, to, length);
    out.put(&context.to_be_bytes());
    for (length, value) in extents {
        // A request has 32 bits, and no extent goes beyond it.
        out.put(&u32::try_from(*length).unwrap_or(u32::MAX).to_be_bytes());
        out.put(&value.to_be_bytes());
    }
}

fn block_status_ext(out: &mut impl Append, to: To, context: u32, extents: &[(u64, u32)], done: bool) {
    let length = 8 + 16 * extents.len() as u64;
    extended_chunk(out, u16::from(done) * REPLY_FLAG_DONE, CHUNK_BLOCK_STATUS_EXT, to, length);
    out.put(&context.to_be_bytes());
    out.put(&u32::try_from(extents.len()).unwrap_or(u32::MAX).to_be_bytes()); // at most 2^20
    for (length, value) in extents {
        out.put(&length.to_be_bytes());
        out.put(&u64::from(*value).to_be_bytes());
    }
}

/// The payload of a BLOCK_STATUS: the bytes that it is about, and the ids of the contexts that are wanted.
///
/// None unless it is as long as that needs.
pub fn parse_status_filter(payload: &[u8]) -> Option<(u64, impl Iterator<Item = u32> + '_)> {
    let (length, ids) = payload.split_first_chunk()?;
    let (ids, rest) = ids.as_chunks::<4>();
    (rest.is_empty() && !ids.is_empty())
        .then(|| (u64::from_be_bytes(*length), ids.iter().map(|id| u32::from_be_bytes(*id))))
}

/// Append the chunk that ends a reply and says nothing else.
#[inline]
pub fn none_chunk(out: &mut impl Append, to: To) {
    chunk(out, REPLY_FLAG_DONE, CHUNK_NONE, to, 0);
}

/// Append the chunk that fails the whole request and ends the reply; `error` is an [`NbdErrno`].
#[inline]
pub fn error_chunk(out: &mut impl Append, to: To, error: u32, message: &str) {
    let text = message_bytes(message);
    chunk(out, REPLY_FLAG_DONE, CHUNK_ERROR, to, u32::from(text.len) + 6);
    error_text(out, error, &text);
}

/// Append a chunk that fails the request from `offset` on; `done` ends the reply.
#[inline]
pub fn error_offset_chunk(out: &mut impl Append, to: To, error: u32, message: &str, offset: u64, done: bool) {
    let text = message_bytes(message);
    let flags = u16::from(done) * REPLY_FLAG_DONE;
    chunk(out, flags, CHUNK_ERROR_OFFSET, to, u32::from(text.len) + 14);
    error_text(out, error, &text);
    out.put(&offset.to_be_bytes());
}

struct Text<'a> {
    bytes: &'a [u8],
    len: u16,
}

/// As much of a message as a chunk carries, cut between characters.
fn message_bytes(message: &str) -> Text<'_> {
    let bytes = &message.as_bytes()[..message.floor_char_boundary(MESSAGE_MAX)];
    Text { bytes, len: u16::try_from(bytes.len()).unwrap_or(0) } // at most MESSAGE_MAX
}

fn error_text(out: &mut impl Append, error: u32, text: &Text<'_>) {
    debug_assert_ne!(error, 0, "an error chunk has an error");
    out.put(&error.to_be_bytes());
    out.put(&text.len.to_be_bytes());
    out.put(text.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(cookie: u64) -> To {
        To { cookie, offset: 0, extended: false }
    }

    fn header(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.try_into().expect("28 bytes")
    }

    #[test]
    fn request_every_field_is_found() {
        let request = Request::parse(&header(0x8003, 6, 0x0102_0304_0506_0708, 1 << 63, 0xffff_ffff));
        let expected = Request {
            flags: 0x8003,
            command: Some(Command::WriteZeroes),
            cookie: 0x0102_0304_0506_0708,
            offset: 1 << 63,
            length: 0xffff_ffff,
            payload_len: 0,
        };
        assert_eq!(request, Some(expected));
        assert!(expected.has_fua());
        assert!(!Request { flags: 0xfffe, ..expected }.has_fua());
    }

    #[test]
    fn request_with_any_wrong_magic_bit_is_refused() {
        let good = header(0, 0, 1, 0, 512);
        assert!(Request::parse(&good).is_some());
        for bit in 0..32 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Request::parse(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn request_commands_have_their_numbers() {
        use Command::{BlockStatus, Cache, Disconnect, Flush, Read, Trim, Write, WriteZeroes};
        let known = [Read, Write, Disconnect, Flush, Trim, Cache, WriteZeroes, BlockStatus];
        for number in 0..=u16::MAX {
            let request = Request::parse(&header(0, number, 0, 0, 0)).expect("the magic is right");
            assert_eq!(request.command, known.get(usize::from(number)).copied(), "command {number}");
        }
        assert_eq!(known.map(Command::has_payload), [false, true, false, false, false, false, false, false]);
        assert_eq!(known.map(Command::modifies), [false, true, false, false, true, false, true, false]);
        assert_eq!(known.map(Command::has_range), [true, true, false, false, true, true, true, true]);
    }

    #[test]
    fn flags_are_allowed_where_they_mean_something() {
        use Command::{BlockStatus, Cache, Disconnect, Flush, Read, Trim, Write, WriteZeroes};
        for command in [Write, Disconnect, Flush, Trim, Cache, Read] {
            assert_eq!(command.allowed_flags(false, false), FLAG_FUA, "{command:?}");
        }
        assert_eq!(Read.allowed_flags(true, false), FLAG_FUA | FLAG_DF);
        assert_eq!(Write.allowed_flags(true, false), FLAG_FUA);
        assert_eq!(WriteZeroes.allowed_flags(true, false), FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO);
        assert_eq!(BlockStatus.allowed_flags(true, false), FLAG_FUA | FLAG_REQ_ONE);
    }

    #[test]
    fn errno_becomes_what_nbd_knows() {
        let same = [libc::EPERM, libc::EIO, libc::ENOMEM, libc::EINVAL, libc::ENOSPC, libc::EOVERFLOW];
        for errno in same.into_iter().chain([libc::EOPNOTSUPP, libc::ESHUTDOWN]) {
            assert_eq!(i64::from(wire_errno(errno)), i64::from(errno));
        }
        for errno in [libc::EDQUOT, libc::EFBIG] {
            assert_eq!(wire_errno(errno), 28);
        }
        for errno in [libc::EACCES, libc::EROFS] {
            assert_eq!(wire_errno(errno), 1);
        }
        let known = [1, 5, 12, 22, 28, 75, 95, 108];
        for errno in -200..10_000 {
            assert!(known.contains(&wire_errno(errno)), "errno {errno}");
        }
        assert_eq!(wire_errno(libc::ENODEV), 5);
        assert_eq!(wire_errno(0), 5, "an error without a number is an error all the same");
    }

    #[test]
    fn simple_reply_is_sixteen_bytes() {
        let mut out = vec![0xee];
        simple_reply(&mut out, 0x0102_0304_0506_0708, 28);
        assert_eq!(out, [0xee, 0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    /// Flags, type, cookie, declared length and payload of the one chunk in `out`.
    fn parse_chunk(out: &[u8]) -> (u16, u16, u64, usize, &[u8]) {
        assert_eq!(out[..4], [0x66, 0x8e, 0x33, 0xef]);
        let short = |at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
        let cookie = u64::from_be_bytes(out[8..16].try_into().expect("8 bytes"));
        let length = u32::from_be_bytes(out[16..20].try_into().expect("4 bytes")) as usize;
        (short(4), short(6), cookie, length, &out[20..])
    }

    #[test]
    fn chunks_declare_what_follows() {
        let mut out = Vec::new();
        for (done, flags) in [(true, 1), (false, 0)] {
            out.clear();
            offset_data(&mut out, to(7), 0x1122, 4096, done);
            assert_eq!(parse_chunk(&out), (flags, 1, 7, 4096 + 8, &0x1122u64.to_be_bytes()[..]));
        }

        out.clear();
        none_chunk(&mut out, to(8));
        assert_eq!(parse_chunk(&out), (1, 0, 8, 0, &[][..]));

        for (done, flags) in [(true, 1), (false, 0)] {
            out.clear();
            offset_hole(&mut out, to(9), 512, 1 << 20, done);
            assert_eq!(parse_chunk(&out), (flags, 2, 9, 12, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 16, 0, 0][..]));
        }
    }

    #[test]
    fn error_chunks_carry_errno_message_and_offset() {
        let mut out = Vec::new();
        error_chunk(&mut out, to(5), 22, "no");
        assert_eq!(parse_chunk(&out), (1, 0x8001, 5, 8, &[0, 0, 0, 22, 0, 2, b'n', b'o'][..]));

        for (done, flags) in [(true, 1), (false, 0)] {
            out.clear();
            error_offset_chunk(&mut out, to(5), 5, "", 0x200, done);
            let expected: [u8; 14] = [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
            assert_eq!(parse_chunk(&out), (flags, 0x8002, 5, 14, &expected[..]));
        }
    }

    #[test]
    fn error_chunk_long_message_is_cut_between_characters() {
        let message = format!("{}é", "x".repeat(MESSAGE_MAX - 1));
        let mut out = Vec::new();
        error_chunk(&mut out, to(5), 5, &message);
        let (_, _, _, length, payload) = parse_chunk(&out);
        assert_eq!(length, payload.len());
        let text = std::str::from_utf8(&payload[6..]).expect("whole characters");
        assert_eq!(text, "x".repeat(MESSAGE_MAX - 1));
        assert_eq!(usize::from(u16::from_be_bytes([payload[4], payload[5]])), text.len());
    }

    #[test]
    fn extended_requests_carry_64_bits_and_say_whether_a_payload_follows() {
        let header = |magic: u32, flags: u16, command: u16, length: u64| -> [u8; EXTENDED_REQUEST_BYTES] {
            let numbers = [7u64.to_be_bytes(), 9u64.to_be_bytes(), length.to_be_bytes()];
            let start = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
            [&start[..], numbers.as_flattened()].concat().try_into().expect("32 bytes")
        };
        for (flags, command, payload_len) in
            [(0, 1, 1 << 40), (32, 1, 1 << 40), (32, 0, 1 << 40), (32, 99, 1 << 40), (1, 6, 0), (32, 2, 0)]
        {
            let request =
                Request::parse_extended(&header(0x21e4_1c71, flags, command, 1 << 40)).expect("the magic is right");
            assert_eq!((request.cookie, request.offset, request.length), (7, 9, 1 << 40));
            assert_eq!(request.payload_len, payload_len, "flags {flags}, command {command}");
        }
        assert!(Request::parse_extended(&header(0x2560_9513, 0, 0, 0)).is_none());
    }

    #[test]
    fn extended_chunks_repeat_the_offset() {
        let mut out = Vec::new();
        let to = To { cookie: 1, offset: 2, extended: true };
        block_status(&mut out, to, 3, &[(1 << 40, 4)], true);
        let mut expected = vec![0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6];
        expected.extend([1u64, 2, 24].map(u64::to_be_bytes).as_flattened());
        expected.extend([3u32, 1].map(u32::to_be_bytes).as_flattened());
        expected.extend([1u64 << 40, 4].map(u64::to_be_bytes).as_flattened());
        assert_eq!(out, expected);
        out.clear();
        none_chunk(&mut out, to);
        assert_eq!(out[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0]);
        assert_eq!(out[24..], [0; 8]);
    }

    #[test]
    fn a_status_filter_has_a_length_and_at_least_one_id() {
        let parse = |bytes: &[u8]| parse_status_filter(bytes).map(|(length, ids)| (length, ids.collect::<Vec<_>>()));
        let good = [&(1u64 << 40).to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 9]].concat();
        assert_eq!(parse(&good), Some((1 << 40, vec![1, 9])));
        for length in [0, 7, 8, 9, 11, 13, 15] {
            assert_eq!(parse(&good[..length]), None, "{length} bytes");
        }
    }
}
