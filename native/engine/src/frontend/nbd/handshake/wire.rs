//! Options and their replies on the wire.
//!
//! Source: NBD proto.md, "Option types", "Option reply types".

use super::ExportDescription;

pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Longest string that NBD allows, in bytes.
pub const STRING_MAX: usize = 4096;
/// Bytes of an option's header: magic, option, length of its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of an option reply's header.
const REPLY_HEADER_BYTES: usize = 20;
/// What follows size and flags in the answer to EXPORT_NAME unless NO_ZEROES was agreed on.
const EXPORT_NAME_PADDING: [u8; 124] = [0; 124];

/// What a client may ask for; the options with other numbers are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    ExportName,
    Abort,
    List,
    StartTls,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    ExtendedHeaders,
    Unsupported,
}

impl OptionKind {
    pub fn from_wire(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            _ => Self::Unsupported,
        }
    }
}

/// An option's header: its number and the length of its data; None when the magic is wrong.
pub fn parse_option_header(item: &[u8]) -> Option<(u32, u32)> {
    let (magic, rest) = item.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    (u64::from_be_bytes(*magic) == OPTION_MAGIC).then(|| (u32::from_be_bytes(*number), u32::from_be_bytes(*length)))
}

/// Reply types other than errors.
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

/// Why an option is refused; each goes with a message for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    Unsupported = (1 << 31) + 1,
    Policy = (1 << 31) + 2,
    Invalid = (1 << 31) + 3,
    TlsRequired = (1 << 31) + 5,
    Unknown = (1 << 31) + 6,
    Shutdown = (1 << 31) + 7,
    TooBig = (1 << 31) + 9,
    ExtHeaderRequired = (1 << 31) + 10,
}

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// What an INFO or GO option asks to be told, apart from what everybody is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InfoRequests {
    pub name: bool,
    pub description: bool,
    /// Who asks for the block sizes promises to keep to them.
    pub block_size: bool,
}

/// The data of INFO and GO: an export's name and a list of information requests.
///
/// None unless every length agrees with every other. Requests that are not known are ignored; a repeated one is
/// answered once.
pub fn parse_info(data: &[u8]) -> Option<(&[u8], InfoRequests)> {
    let (name, rest) = split_string(data)?;
    let (count, list) = rest.split_first_chunk()?;
    if list.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
        return None;
    }
    let mut requests = InfoRequests::default();
    for pair in list.chunks_exact(2) {
        match u16::from_be_bytes([pair[0], pair[1]]) {
            INFO_NAME => requests.name = true,
            INFO_DESCRIPTION => requests.description = true,
            INFO_BLOCK_SIZE => requests.block_size = true,
            _ => {}
        }
    }
    Some((name, requests))
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT: an export's name and queries.
///
/// None unless every length agrees with every other and each query is a string that NBD allows.
pub fn parse_meta_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = split_string(data)?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    if count > rest.len() / 4 {
        return None; // each has a length of four bytes
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        let (query, after) = split_string(rest)?;
        queries.push(query);
        rest = after;
    }
    (rest.is_empty() && queries.iter().all(|query| query.len() <= STRING_MAX)).then_some((name, queries))
}

/// A length of 32 bits and as many bytes, and what follows them.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if fault!(LengthTrusted) { Some(rest.split_at(length)) } else { rest.split_at_checked(length) }
}

/// An export's name: UTF-8 without NUL, at most [`STRING_MAX`] bytes.
pub fn parse_name(bytes: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(bytes).ok()?;
    (name.len() <= STRING_MAX && !name.contains('\0')).then_some(name)
}

/// Appends the replies to one option.
pub struct Replies<'a> {
    out: &'a mut Vec<u8>,
    option: u32,
}

impl<'a> Replies<'a> {
    pub fn new(out: &'a mut Vec<u8>, option: u32) -> Self {
        Self { out, option }
    }

    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(length <= 4 + 2 * STRING_MAX, "a reply has at most two strings");
        self.out.reserve(REPLY_HEADER_BYTES + length);
        self.out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&wire_len(length).to_be_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    pub fn ack(&mut self) {
        self.reply(REP_ACK, &[]);
    }

    pub fn refuse(&mut self, refusal: Refusal, message: &str) {
        self.reply(refusal as u32, &[message.as_bytes()]);
    }

    /// One export of a listing.
    pub fn server(&mut self, name: &str, description: &str) {
        let (name, description) = (string(name), string(description));
        self.reply(REP_SERVER, &[&wire_len(name.len()).to_be_bytes(), name, description]);
    }

    /// One metadata context under the id that BLOCK_STATUS uses.
    pub fn meta_context(&mut self, id: u32, name: &str) {
        self.reply(REP_META_CONTEXT, &[&id.to_be_bytes(), string(name)]);
    }

    /// Everything about an export: what is always told, then what was asked for.
    ///
    /// The block sizes go to those who did not ask as well: a client that ignores them gets EINVAL for a misaligned
    /// request, and one that heeds them works.
    pub fn describe(&mut self, export: &ExportDescription, flags: u16, requests: InfoRequests) {
        let (size, flags) = (export.size_bytes.to_be_bytes(), flags.to_be_bytes());
        self.reply(REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &size, &flags]);
        if requests.name {
            self.reply(REP_INFO, &[&INFO_NAME.to_be_bytes(), string(&export.name)]);
        }
        if requests.description && !export.description.is_empty() {
            self.reply(REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), string(&export.description)]);
        }
        let sizes = [export.min_block, export.preferred_block, export.max_payload].map(u32::to_be_bytes);
        self.reply(REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes(), sizes.as_flattened()]);
        self.ack();
    }

    /// The answer to EXPORT_NAME, which has no header.
    pub fn export_name(&mut self, export: &ExportDescription, flags: u16, no_zeroes: bool) {
        self.out.extend_from_slice(&export.size_bytes.to_be_bytes());
        self.out.extend_from_slice(&flags.to_be_bytes());
        if !no_zeroes {
            self.out.extend_from_slice(&EXPORT_NAME_PADDING);
        }
    }
}

/// A string as NBD carries it, cut between characters where it is too long.
fn string(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(STRING_MAX)]
}

/// The length of something that is bounded far below 4 GiB.
fn wire_len(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
