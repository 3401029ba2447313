//! The server's side of NBD's fixed newstyle handshake, without I/O.
//!
//! [`Handshake::feed`] takes bytes as they come, in pieces of any size, and appends what is to be sent. Nothing of an
//! export is touched before a client has named it in full, so a half-open connection costs a few KiB and no more.
//! Everything a client can make this do is bounded: bytes kept, bytes sent, options taken. The time is the caller's.
//!
//! Not here: TLS itself. What is left of the conversation after STARTTLS comes in and goes out encrypted.
//!
//! Source: NBD proto.md, "Fixed newstyle negotiation" and "Values".

mod wire;

#[cfg(test)]
mod tests;

use wire::{OPTION_HEADER_BYTES, OptionKind, Refusal, Replies};

use super::context::Contexts;
use super::proto;

const SERVER_FIXED_NEWSTYLE: u16 = 1 << 0;
const SERVER_NO_ZEROES: u16 = 1 << 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Most data of an option that is looked at: a name of 4096 bytes and 30,000 information requests fit.
const DATA_MAX: usize = 64 << 10;
/// Most data of an option that is read past. Who announces more is not going to negotiate (CVE-2017-15119).
const SKIP_MAX: u32 = 32 << 20;
/// Options of one client, not counting those that a listing gives reason for: whoever asks for something that is not
/// supported, again and again, ends after these.
const OPTIONS_MAX: usize = 1024;
/// More options for each export that was listed: `qemu-nbd --list` asks INFO and LIST_META_CONTEXT of every one.
const OPTIONS_PER_EXPORT: usize = 4;
/// Bytes to be sent after which no further option is answered until they are gone. One listing may be longer.
const UNSENT_MAX: usize = 256 << 10;
/// Bytes of a client's text that an error message repeats.
const QUOTE_MAX: usize = 80;

/// An export as LIST names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportListing {
    pub name: String,
    /// Empty: none.
    pub description: String,
}

/// An export as INFO and GO describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportDescription {
    /// Its own name, also where the client asked for the default export.
    pub name: String,
    pub size_bytes: u64,
    /// `proto::TRANS_*`; DF is set or cleared here, by what was negotiated.
    pub transmission_flags: u16,
    /// Empty: none.
    pub description: String,
    /// Bytes; a power of two of at most 65536.
    pub min_block: u32,
    /// Bytes; a power of two, at least 512 and `min_block`.
    pub preferred_block: u32,
    /// Bytes of one request; a multiple of `min_block`.
    pub max_payload: u32,
}

/// Why an export lets no client in just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoEntry {
    /// It has as many clients as it may have, or had too many new ones; for people.
    Policy(String),
    /// It is going away.
    Closing,
}

/// The exports that a client may choose from.
pub trait ExportDirectory {
    fn list(&self) -> Vec<ExportListing>;

    /// The export of this name; the empty name is the default export's.
    fn find(&self, name: &str) -> Option<ExportDescription>;

    /// Let the client in to the export of this name, whose use begins.
    ///
    /// # Errors
    /// Why not; the client may go on with other options.
    fn enter(&self, name: &str) -> Result<(), NoEntry>;
}

/// What a client and the server have agreed on for the transmission phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The export's own name.
    pub export: String,
    pub structured_replies: bool,
    /// Requests and replies have lengths of 64 bits; implies structured replies.
    pub extended_headers: bool,
    /// What BLOCK_STATUS tells; empty: the command is not to be used.
    pub contexts: Contexts,
    /// The client asked for the block sizes and has to keep to them.
    pub block_sizes: bool,
}

/// What a client may and must do about TLS.
///
/// Source: NBD proto.md, "Server-side requirements": NOTLS, SELECTIVETLS, FORCEDTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    Off,
    Offered,
    /// Nothing is answered without.
    Required,
    /// It is in use.
    Active,
}

/// Where the handshake is after a piece of input. `consumed` bytes of that piece are done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Send what was appended, then feed what is left of the piece, or the next one when all was consumed.
    NeedMore { consumed: usize },
    /// Send what was appended; then TLS begins, and `consumed` has to be all that was received. Whatever was agreed on
    /// before is forgotten.
    StartTls { consumed: usize },
    /// Send what was appended; from there on, and from `consumed` on, it is the transmission phase of `export`.
    Transmission { consumed: usize, agreed: Agreed },
    /// Send what was appended, then close.
    Close { consumed: usize },
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// What was received of the item that `state` waits for.
    partial: Vec<u8>,
    tls: Tls,
    no_zeroes: bool,
    structured_replies: bool,
    extended_headers: bool,
    /// The contexts that were chosen, and the export that they were chosen for.
    contexts: Option<(String, Contexts)>,
    options: usize,
    options_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData(OptionHeader),
    /// Data that nobody looks at, of which `left` bytes are to come.
    SkipData {
        option: OptionHeader,
        left: usize,
    },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OptionHeader {
    number: u32,
    kind: OptionKind,
    data_len: usize,
}

/// What an item of input leads to.
enum Next {
    Go(State),
    StartTls,
    Transmission { export: String, block_sizes: bool },
    Close,
}

/// The option is answered and the client may send another.
const CONTINUE: Next = Next::Go(State::OptionHeader);

impl Default for Handshake {
    fn default() -> Self {
        Self::with_tls(Tls::Off)
    }
}

impl Handshake {
    pub fn with_tls(tls: Tls) -> Self {
        Self {
            state: State::ClientFlags,
            partial: Vec::new(),
            tls,
            no_zeroes: false,
            structured_replies: false,
            extended_headers: false,
            contexts: None,
            options: 0,
            options_max: OPTIONS_MAX,
        }
    }

    /// Append what the server says first, before anything is fed.
    pub fn greeting(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"NBDMAGIC");
        out.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(SERVER_FIXED_NEWSTYLE | SERVER_NO_ZEROES).to_be_bytes());
    }

    /// Take the next piece of what the client sends and append the answers to `out`.
    ///
    /// After `Transmission` or `Close` the handshake is over and every further piece is `Close`.
    pub fn feed(&mut self, input: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Progress {
        let mut consumed = 0;
        loop {
            let Some(item) = self.take_item(input, &mut consumed) else {
                return Progress::NeedMore { consumed };
            };
            self.state = match self.handle(&item, directory, out) {
                Next::Go(state) => state,
                Next::StartTls => {
                    self.state = State::OptionHeader;
                    return Progress::StartTls { consumed };
                }
                Next::Transmission { export, block_sizes } => {
                    self.state = State::Ended;
                    return Progress::Transmission { consumed, agreed: self.agreed(export, block_sizes) };
                }
                Next::Close => {
                    self.state = State::Ended;
                    return Progress::Close { consumed };
                }
            };
            if self.state == State::OptionHeader && out.len() > UNSENT_MAX {
                return Progress::NeedMore { consumed };
            }
        }
    }

    fn agreed(&mut self, export: String, block_sizes: bool) -> Agreed {
        // NBD: contexts that were chosen for another export are none.
        let chosen = self.contexts.take().filter(|(name, _)| *name == export);
        let contexts = chosen.map(|(_, contexts)| contexts).unwrap_or_default();
        let (structured_replies, extended_headers) = (self.structured_replies, self.extended_headers);
        Agreed { export, structured_replies, extended_headers, contexts, block_sizes }
    }

    /// Take what the state waits for out of the input; None, with everything taken, while it is not complete.
    fn take_item(&mut self, input: &[u8], consumed: &mut usize) -> Option<Vec<u8>> {
        let rest = &input[*consumed..];
        let wanted = match &mut self.state {
            State::ClientFlags => 4,
            State::OptionHeader => OPTION_HEADER_BYTES,
            State::OptionData(option) => option.data_len,
            State::SkipData { left, .. } => {
                let count = rest.len().min(*left);
                *left -= count;
                *consumed += count;
                return (*left == 0).then(Vec::new);
            }
            State::Ended => 0,
        };
        let count = rest.len().min(wanted - self.partial.len());
        if fault!(PieceForgotten) && !self.partial.is_empty() {
            self.partial.fill(0);
        }
        self.partial.extend_from_slice(&rest[..count]);
        *consumed += count;
        (self.partial.len() == wanted).then(|| std::mem::take(&mut self.partial))
    }

    fn handle(&mut self, item: &[u8], directory: &dyn ExportDirectory, out: &mut Vec<u8>) -> Next {
        match self.state {
            State::ClientFlags => self.client_flags(item),
            State::OptionHeader => self.option_header(item),
            State::OptionData(option) | State::SkipData { option, .. } => {
                self.option(option, item, directory, &mut Replies::new(out, option.number))
            }
            State::Ended => Next::Close,
        }
    }

    /// A flag that was not offered ends the connection; fixed newstyle is honoured for who forgets to say so.
    fn client_flags(&mut self, item: &[u8]) -> Next {
        let flags = item.iter().fold(0, |value: u32, &byte| value << 8 | u32::from(byte));
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) == 0 { CONTINUE } else { Next::Close }
    }

    fn option_header(&mut self, item: &[u8]) -> Next {
        self.options += 1;
        let Some((number, data_len)) = wire::parse_option_header(item) else { return Next::Close };
        if self.options > self.options_max || data_len > SKIP_MAX {
            return Next::Close;
        }
        let option = OptionHeader { number, kind: OptionKind::from_wire(number), data_len: data_len as usize };
        match option.kind {
            OptionKind::ExportName if option.data_len > wire::STRING_MAX => Next::Close,
            OptionKind::ExportName
            | OptionKind::Info
            | OptionKind::Go
            | OptionKind::ListMetaContext
            | OptionKind::SetMetaContext
                if option.data_len <= DATA_MAX && self.tls != Tls::Required =>
            {
                Next::Go(State::OptionData(option))
            }
            _ => Next::Go(State::SkipData { option, left: option.data_len }),
        }
    }

    /// Answer an option; `data` is empty where it was read past.
    fn option(
        &mut self,
        option: OptionHeader,
        data: &[u8],
        directory: &dyn ExportDirectory,
        replies: &mut Replies<'_>,
    ) -> Next {
        let is_free = matches!(option.kind, OptionKind::StartTls | OptionKind::Abort) || fault!(PlaintextLetIn);
        if self.tls == Tls::Required && !is_free {
            if option.kind == OptionKind::ExportName {
                return Next::Close;
            }
            replies.refuse(Refusal::TlsRequired, "this server wants TLS first");
            return CONTINUE;
        }
        match option.kind {
            OptionKind::ExportName => return self.export_name(data, directory, replies),
            OptionKind::StartTls => return self.start_tls(option, replies),
            OptionKind::Abort => {
                replies.ack();
                return Next::Close;
            }
            OptionKind::Info | OptionKind::Go => return self.info(option, data, directory, replies),
            OptionKind::List | OptionKind::StructuredReply | OptionKind::ExtendedHeaders if option.data_len != 0 => {
                replies.refuse(Refusal::Invalid, "this option has no data");
            }
            OptionKind::List => self.list(directory, replies),
            OptionKind::ExtendedHeaders if self.extended_headers => {
                replies.refuse(Refusal::Invalid, "extended headers are agreed on already");
            }
            OptionKind::ExtendedHeaders => {
                (self.structured_replies, self.extended_headers) = (true, true);
                replies.ack();
            }
            OptionKind::StructuredReply if self.extended_headers => {
                replies.refuse(Refusal::ExtHeaderRequired, "extended headers are agreed on and say more");
            }
            OptionKind::StructuredReply if self.structured_replies => {
                replies.refuse(Refusal::Invalid, "structured replies are agreed on already");
            }
            OptionKind::StructuredReply => {
                self.structured_replies = true;
                replies.ack();
            }
            OptionKind::ListMetaContext => self.list_contexts(option, data, directory, replies),
            OptionKind::SetMetaContext => self.set_contexts(option, data, directory, replies),
            OptionKind::Unsupported => replies.refuse(Refusal::Unsupported, "this server does not have this option"),
        }
        CONTINUE
    }

    /// The one option that cannot be refused: what fails ends the connection. Extended headers forbid it.
    fn export_name(&self, name: &[u8], directory: &dyn ExportDirectory, replies: &mut Replies<'_>) -> Next {
        if self.extended_headers {
            return Next::Close;
        }
        let Some(export) = wire::parse_name(name).and_then(|name| directory.find(name)) else { return Next::Close };
        if directory.enter(&export.name).is_err() {
            return Next::Close;
        }
        replies.export_name(&export, self.transmission_flags(&export), self.no_zeroes);
        Next::Transmission { export: export.name, block_sizes: false }
    }

    /// Begin TLS as if nothing had been agreed on before (CVE-2021-3716).
    fn start_tls(&mut self, option: OptionHeader, replies: &mut Replies<'_>) -> Next {
        match self.tls {
            Tls::Off => replies.refuse(Refusal::Unsupported, "this server is not set up for TLS"),
            _ if option.data_len != 0 => replies.refuse(Refusal::Invalid, "this option has no data"),
            Tls::Active => replies.refuse(Refusal::Invalid, "TLS is in use already"),
            Tls::Offered | Tls::Required => {
                let (no_zeroes, options, options_max) = (self.no_zeroes, self.options, self.options_max);
                *self = Self { no_zeroes, options, options_max, ..Self::with_tls(Tls::Active) };
                replies.ack();
                return Next::StartTls;
            }
        }
        CONTINUE
    }

    fn list(&mut self, directory: &dyn ExportDirectory, replies: &mut Replies<'_>) {
        let exports = directory.list();
        for export in &exports {
            replies.server(&export.name, &export.description);
        }
        replies.ack();
        self.options_max = self.options_max.max(OPTIONS_MAX + exports.len() * OPTIONS_PER_EXPORT);
    }

    fn info(
        &self,
        option: OptionHeader,
        data: &[u8],
        directory: &dyn ExportDirectory,
        replies: &mut Replies<'_>,
    ) -> Next {
        if option.data_len > DATA_MAX {
            replies.refuse(Refusal::TooBig, "more information requests than this server reads");
            return CONTINUE;
        }
        let Some((name, requests)) = wire::parse_info(data) else {
            replies.refuse(Refusal::Invalid, "the lengths in this option do not agree");
            return CONTINUE;
        };
        let Some(export) = find_export(name, directory, replies) else { return CONTINUE };
        let is_go = option.kind == OptionKind::Go;
        if let Err(reason) = if is_go { directory.enter(&export.name) } else { Ok(()) } {
            match reason {
                NoEntry::Policy(message) => replies.refuse(Refusal::Policy, &message),
                NoEntry::Closing => replies.refuse(Refusal::Shutdown, "the export is going away"),
            }
            return CONTINUE;
        }
        replies.describe(&export, self.transmission_flags(&export), requests);
        if !is_go {
            return CONTINUE;
        }
        Next::Transmission { export: export.name, block_sizes: requests.block_size }
    }

    /// What contexts there are: all when nothing is asked, else those that a name or a namespace asks for.
    fn list_contexts(
        &self,
        option: OptionHeader,
        data: &[u8],
        directory: &dyn ExportDirectory,
        replies: &mut Replies<'_>,
    ) {
        let Some((_, queries)) = meta_queries(option, data, directory, replies) else { return };
        let found = if queries.is_empty() { Contexts::all() } else { Contexts::matching(queries, true) };
        for context in found.iter() {
            replies.meta_context(0, context.name()); // NBD: the id means nothing here
        }
        replies.ack();
    }

    /// Choose contexts for an export; whatever was chosen before is forgotten, also when this fails.
    fn set_contexts(
        &mut self,
        option: OptionHeader,
        data: &[u8],
        directory: &dyn ExportDirectory,
        replies: &mut Replies<'_>,
    ) {
        self.contexts = None;
        if !self.structured_replies {
            replies.refuse(Refusal::Invalid, "agree on structured replies first");
            return;
        }
        let Some((export, queries)) = meta_queries(option, data, directory, replies) else { return };
        let chosen = Contexts::matching(queries, false);
        for context in chosen.iter() {
            replies.meta_context(context.id(), context.name());
        }
        replies.ack();
        self.contexts = Some((export, chosen));
    }

    fn transmission_flags(&self, export: &ExportDescription) -> u16 {
        let agreed = [
            (self.structured_replies, proto::TRANS_SEND_DF),
            (self.extended_headers, proto::TRANS_BLOCK_STATUS_PAYLOAD),
        ];
        agreed.iter().fold(
            export.transmission_flags,
            |flags, &(is_agreed, flag)| {
                if is_agreed { flags | flag } else { flags & !flag }
            },
        )
    }
}

/// The export that a client names; None when that was refused.
fn find_export(name: &[u8], directory: &dyn ExportDirectory, replies: &mut Replies<'_>) -> Option<ExportDescription> {
    let Some(name) = wire::parse_name(name) else {
        replies.refuse(Refusal::Invalid, "an export's name is UTF-8 of at most 4096 bytes without NUL");
        return None;
    };
    let export = directory.find(name);
    if export.is_none() {
        replies.refuse(Refusal::Unknown, &unknown_export(name));
    }
    export
}

/// The export's own name and the queries of an option about contexts; None when it was refused.
fn meta_queries<'a>(
    option: OptionHeader,
    data: &'a [u8],
    directory: &dyn ExportDirectory,
    replies: &mut Replies<'_>,
) -> Option<(String, Vec<&'a [u8]>)> {
    if option.data_len > DATA_MAX {
        replies.refuse(Refusal::TooBig, "more queries than this server reads");
        return None;
    }
    let Some((name, queries)) = wire::parse_meta_queries(data) else {
        replies.refuse(Refusal::Invalid, "the lengths in this option do not agree");
        return None;
    };
    Some((find_export(name, directory, replies)?.name, queries))
}

/// The name comes from a stranger: escaped, and cut well below what a string may have (CVE-2020-10761).
fn unknown_export(name: &str) -> String {
    if name.is_empty() {
        return "there is no default export; name one".to_owned();
    }
    let quoted = &name[..name.floor_char_boundary(QUOTE_MAX)];
    format!("there is no export {quoted:?}{}", if quoted.len() < name.len() { "..." } else { "" })
}
