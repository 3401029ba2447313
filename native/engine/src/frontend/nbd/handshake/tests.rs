//! The handshake as clients of every kind drive it: each option, each split of the input, and hostile input.

use std::cell::Cell;
use std::fmt::Debug;

use super::*;
use crate::frontend::nbd::proto::{TRANS_HAS_FLAGS, TRANS_SEND_DF, TRANS_SEND_FLUSH};

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_TLS_REQD: u32 = 0x8000_0005;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_SHUTDOWN: u32 = 0x8000_0007;
const ERR_TOO_BIG: u32 = 0x8000_0009;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const FLAGS: u16 = TRANS_HAS_FLAGS | TRANS_SEND_FLUSH;
const SIZE: u64 = 0x0102_0304_0506_0800;

/// Two exports, the first of them the default; counts how often a backend was asked for.
#[derive(Default)]
struct Exports {
    found: Cell<usize>,
    long_name: Option<String>,
    no_entry: Option<NoEntry>,
}

impl ExportDirectory for Exports {
    fn list(&self) -> Vec<ExportListing> {
        let listing =
            |name: &str, description: &str| ExportListing { name: name.into(), description: description.into() };
        vec![listing("disk", "a disk"), listing("other", "")]
    }

    fn find(&self, name: &str) -> Option<ExportDescription> {
        self.found.set(self.found.get() + 1);
        let own = match name {
            "" | "disk" => "disk",
            "other" => "other",
            _ if self.long_name.as_deref() == Some(name) => name,
            _ => return None,
        };
        Some(ExportDescription {
            name: own.into(),
            size_bytes: SIZE,
            transmission_flags: FLAGS,
            description: if own == "disk" { "a disk".into() } else { String::new() },
            min_block: 512,
            preferred_block: 4096,
            max_payload: 64 << 20,
        })
    }

    fn enter(&self, _name: &str) -> Result<(), NoEntry> {
        self.no_entry.clone().map_or(Ok(()), Err)
    }
}

/// CVE-2021-3716: what was agreed on in the clear may have been put there by somebody in between.
#[test]
fn tls_begins_as_if_nothing_had_been_agreed_on() {
    for before in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let mut handshake = Handshake::with_tls(Tls::Offered);
        let mut out = Vec::new();
        let agreed = session(&[
            option(before, b""),
            option(SET_META_CONTEXT, &meta_data("disk", &["base:allocation"])),
            option(STARTTLS, b""),
        ]);
        let progress = feed_all(&mut handshake, &agreed, &Exports::default(), &mut out);
        assert_eq!(progress, Progress::StartTls { consumed: agreed.len() });
        assert_eq!(parse_replies(&out).last().map(|reply| (reply.0, reply.1)), Some((STARTTLS, ACK)));
        out.clear();
        let go = [
            option(SET_META_CONTEXT, &meta_data("disk", &["base:allocation"])),
            option(STARTTLS, b""),
            option(GO, &info_data("disk", &[])),
        ]
        .concat();
        let progress = feed_all(&mut handshake, &go, &Exports::default(), &mut out);
        let Progress::Transmission { agreed, .. } = progress else { panic!("{progress:?}") };
        assert!(!agreed.structured_replies && !agreed.extended_headers && agreed.contexts.is_empty());
        let kinds: Vec<(u32, u32)> = parse_replies(&out).iter().map(|reply| (reply.0, reply.1)).collect();
        assert_eq!(kinds[..2], [(SET_META_CONTEXT, ERR_INVALID), (STARTTLS, ERR_INVALID)]);
    }
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_and_no_export_is_named() {
    let exports = Exports::default();
    let mut out = Vec::new();
    let numbers = [LIST, OPT_INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS, 99];
    let asked: Vec<Vec<u8>> = numbers.iter().map(|&number| option(number, &info_data("disk", &[]))).collect();
    let mut handshake = Handshake::with_tls(Tls::Required);
    feed_all(&mut handshake, &session(&asked), &exports, &mut out);
    let replies = parse_replies(&out);
    assert_eq!(replies.iter().map(|reply| reply.0).collect::<Vec<_>>(), numbers);
    assert!(replies.iter().all(|reply| reply.1 == ERR_TLS_REQD));
    assert_eq!(exports.found.get(), 0);
    let progress = feed_all(&mut handshake, &option(STARTTLS, b"x"), &exports, &mut out);
    assert_eq!(progress, Progress::NeedMore { consumed: 17 }, "with data it is refused");
    let progress = feed_all(&mut handshake, &option(STARTTLS, b""), &exports, &mut out);
    assert_eq!(progress, Progress::StartTls { consumed: 16 });
    out.clear();
    let progress = feed_all(&mut handshake, &option(GO, &info_data("disk", &[])), &exports, &mut out);
    assert!(matches!(progress, Progress::Transmission { .. }), "{progress:?}");
    assert!(parse_replies(&out).iter().all(|reply| reply.1 != ERR_TLS_REQD), "never once TLS is up");
    for bytes in [option(EXPORT_NAME, b"disk"), option(ABORT, b"")] {
        out.clear();
        let progress = feed_all(
            &mut Handshake::with_tls(Tls::Required),
            &session(std::slice::from_ref(&bytes)),
            &exports,
            &mut out,
        );
        assert_eq!(progress, Progress::Close { consumed: 4 + bytes.len() });
    }
}

#[test]
fn an_export_that_lets_nobody_in_is_told_of_and_refused() {
    for (no_entry, expected) in [(NoEntry::Policy("full".into()), ERR_POLICY), (NoEntry::Closing, ERR_SHUTDOWN)] {
        let exports = Exports { no_entry: Some(no_entry), ..Exports::default() };
        let input = session(&[option(OPT_INFO, &info_data("disk", &[])), option(GO, &info_data("disk", &[]))]);
        let mut out = Vec::new();
        let progress = feed_all(&mut Handshake::default(), &input, &exports, &mut out);
        assert_eq!(progress, Progress::NeedMore { consumed: input.len() }, "the client may go on");
        let kinds: Vec<(u32, u32)> = parse_replies(&out).iter().map(|reply| (reply.0, reply.1)).collect();
        assert_eq!(kinds.first(), Some(&(OPT_INFO, INFO)));
        assert_eq!(kinds.iter().filter(|(option, _)| *option == GO).collect::<Vec<_>>(), [&(GO, expected)]);
        out.clear();
        let named = session(&[option(EXPORT_NAME, b"disk")]);
        let progress = feed_all(&mut Handshake::default(), &named, &exports, &mut out);
        assert_eq!((progress, out.is_empty()), (Progress::Close { consumed: named.len() }, true));
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of INFO and GO.
fn info_data(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    data.extend(name.bytes());
    data.extend(u16::try_from(requests.len()).expect("few").to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

/// Client flags for a fixed newstyle client without zeroes, then the options.
fn session(options: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(options.iter().flatten());
    bytes
}

/// One option reply: option, type, data.
type Reply = (u32, u32, Vec<u8>);

fn parse_replies(mut out: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        assert_eq!(out[..8], 0x3_e889_0455_65a9u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().expect("4 bytes"));
        let end = 20 + word(16) as usize;
        replies.push((word(8), word(12), out[20..end].to_vec()));
        out = &out[end..];
    }
    replies
}

/// Feed everything, sending whenever the handshake asks for it.
fn feed_all(handshake: &mut Handshake, input: &[u8], exports: &Exports, out: &mut Vec<u8>) -> Progress {
    let mut done = 0;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        match handshake.feed(&input[done..], exports, &mut piece) {
            Progress::NeedMore { consumed } if consumed < input.len() - done => done += consumed,
            Progress::NeedMore { consumed } => {
                out.append(&mut piece);
                return Progress::NeedMore { consumed: done + consumed };
            }
            Progress::StartTls { consumed } => {
                out.append(&mut piece);
                return Progress::StartTls { consumed: done + consumed };
            }
            Progress::Transmission { consumed, agreed } => {
                out.append(&mut piece);
                return Progress::Transmission { consumed: done + consumed, agreed };
            }
            Progress::Close { consumed } => {
                out.append(&mut piece);
                return Progress::Close { consumed: done + consumed };
            }
        }
        out.append(&mut piece);
    }
}

fn run(input: &[u8]) -> (Progress, Vec<u8>) {
    let mut out = Vec::new();
    let progress = feed_all(&mut Handshake::default(), input, &Exports::default(), &mut out);
    (progress, out)
}

/// The replies to some options of a client that goes on afterwards.
fn replies_to(options: &[Vec<u8>]) -> Vec<Reply> {
    let input = session(options);
    let (progress, out) = run(&input);
    assert_eq!(progress, Progress::NeedMore { consumed: input.len() });
    parse_replies(&out)
}

/// Option and type of each reply.
fn kinds(replies: &[Reply]) -> Vec<(u32, u32)> {
    replies.iter().map(|(option, kind, _)| (*option, *kind)).collect()
}

fn transmission(input: &[u8], export: &str, structured_replies: bool) -> Progress {
    let agreed = Agreed {
        export: export.into(),
        structured_replies,
        extended_headers: false,
        contexts: Contexts::default(),
        block_sizes: false,
    };
    Progress::Transmission { consumed: input.len(), agreed }
}

/// What a client that goes to transmission has agreed on.
fn agreed(input: &[u8]) -> Agreed {
    match run(input).0 {
        Progress::Transmission { agreed, .. } => agreed,
        other => panic!("{other:?} instead of transmission"),
    }
}

#[test]
fn greeting_offers_fixed_newstyle_without_zeroes() {
    let mut out = Vec::new();
    Handshake::default().greeting(&mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn client_flags_unknown_bit_closes() {
    for bit in 0..32 {
        let (progress, out) = run(&(1u32 << bit).to_be_bytes());
        let expected = if bit < 2 { Progress::NeedMore { consumed: 4 } } else { Progress::Close { consumed: 4 } };
        assert_eq!(progress, expected, "bit {bit}");
        assert!(out.is_empty());
    }
}

#[test]
fn wrong_option_magic_closes() {
    for byte in 0..8 {
        let mut bad = option(LIST, b"");
        bad[byte] ^= 0x20;
        let (progress, out) = run(&session(&[bad]));
        assert_eq!((progress, out.len()), (Progress::Close { consumed: 20 }, 0), "byte {byte}");
    }
}

#[test]
fn list_names_every_export_and_its_description() {
    let server = |name: &[u8], description: &[u8]| {
        let length = u32::try_from(name.len()).expect("short").to_be_bytes();
        (LIST, SERVER, [&length, name, description].concat())
    };
    let expected = [server(b"disk", b"a disk"), server(b"other", b""), (LIST, ACK, vec![])];
    assert_eq!(replies_to(&[option(LIST, b"")]), expected);
}

#[test]
fn options_without_data_refuse_data() {
    for number in [LIST, STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let replies = replies_to(&[option(number, b"x"), option(number, b"")]);
        assert_eq!(kinds(&replies[..1]), [(number, ERR_INVALID)]);
        assert_eq!(replies.last().map(|reply| reply.1), Some(ACK), "the refused one changed nothing");
    }
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"bye"] {
        let input = session(&[option(ABORT, data)]);
        let (progress, out) = run(&input);
        assert_eq!(progress, Progress::Close { consumed: input.len() });
        assert_eq!(parse_replies(&out), [(ABORT, ACK, vec![])]);
    }
}

#[test]
fn after_the_end_everything_closes() {
    let mut handshake = Handshake::default();
    let mut out = Vec::new();
    let exports = Exports::default();
    feed_all(&mut handshake, &session(&[option(ABORT, b"")]), &exports, &mut out);
    out.clear();
    for _ in 0..3 {
        assert_eq!(handshake.feed(&option(LIST, b""), &exports, &mut out), Progress::Close { consumed: 0 });
    }
    assert!(out.is_empty());
}

#[test]
fn unsupported_options_are_read_past_and_refused() {
    let others = [4, STARTTLS, 12, 0, 0xffff_ffff];
    for number in others {
        for data in [vec![], vec![7; 100], vec![7; DATA_MAX + 1]] {
            let replies = replies_to(&[option(number, &data), option(STRUCTURED_REPLY, b"")]);
            assert_eq!(kinds(&replies), [(number, ERR_UNSUP), (STRUCTURED_REPLY, ACK)]);
            assert!(!replies[0].2.is_empty(), "a refusal says why");
        }
    }
}

#[test]
fn structured_reply_is_agreed_on_once() {
    let twice = [option(STRUCTURED_REPLY, b""), option(STRUCTURED_REPLY, b"")];
    assert_eq!(kinds(&replies_to(&twice)), [(STRUCTURED_REPLY, ACK), (STRUCTURED_REPLY, ERR_INVALID)]);
    let input = session(&[twice.concat(), option(GO, &info_data("disk", &[]))]);
    assert_eq!(run(&input).0, transmission(&input, "disk", true));
}

/// The data of INFO_EXPORT.
fn export_info(flags: u16) -> Vec<u8> {
    [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat()
}

/// The data of INFO_BLOCK_SIZE.
fn block_size_info() -> Vec<u8> {
    [&[0, 3][..], &512u32.to_be_bytes(), &4096u32.to_be_bytes(), &(64u32 << 20).to_be_bytes()].concat()
}

#[test]
fn info_tells_what_is_asked_and_what_everybody_needs() {
    let (name, description) = (b"\x00\x01disk".to_vec(), b"\x00\x02a disk".to_vec());
    let cases: [(&[u16], Vec<Vec<u8>>); 8] = [
        (&[], vec![]),
        (&[0], vec![]),
        (&[3], vec![]),
        (&[1], vec![name.clone()]),
        (&[2], vec![description.clone()]),
        (&[3, 2, 1, 0], vec![name.clone(), description.clone()]),
        (&[1, 1, 2, 1], vec![name, description]),
        (&[4, 0x8000, 0xffff], vec![]),
    ];
    for (requests, asked) in cases {
        let mut expected = vec![export_info(FLAGS)];
        expected.extend(asked);
        expected.push(block_size_info());
        for wanted in ["", "disk"] {
            let replies = replies_to(&[option(OPT_INFO, &info_data(wanted, requests))]);
            let (last, infos) = replies.split_last().expect("at least the end");
            assert_eq!(*last, (OPT_INFO, ACK, vec![]));
            let told: Vec<_> = infos.iter().map(|(option, kind, data)| (*option, *kind, data.clone())).collect();
            let expected: Vec<_> = expected.iter().map(|data| (OPT_INFO, INFO, data.clone())).collect();
            assert_eq!(told, expected, "requests {requests:?}");
        }
    }
}

#[test]
fn info_without_description_leaves_it_out() {
    let replies = replies_to(&[option(OPT_INFO, &info_data("other", &[2]))]);
    assert_eq!(kinds(&replies), [(OPT_INFO, INFO), (OPT_INFO, INFO), (OPT_INFO, ACK)]);
    assert!(replies.iter().all(|reply| !reply.2.starts_with(&[0, 2])));
}

#[test]
fn go_after_info_tells_the_same_and_enters_transmission_without_padding() {
    for structured in [false, true] {
        for client_flags in [1u32, 3] {
            let first = if structured { option(STRUCTURED_REPLY, b"") } else { vec![] };
            let data = info_data("", &[1, 2]);
            let mut input = client_flags.to_be_bytes().to_vec();
            input.extend([first, option(OPT_INFO, &data), option(GO, &data)].concat());
            let (progress, out) = run(&input);
            assert_eq!(progress, transmission(&input, "disk", structured));
            let told = |number: u32| -> Vec<_> {
                parse_replies(&out)
                    .into_iter()
                    .filter(|reply| reply.0 == number)
                    .map(|reply| (reply.1, reply.2))
                    .collect()
            };
            assert_eq!(told(OPT_INFO), told(GO));
            let flags = FLAGS | if structured { TRANS_SEND_DF } else { 0 };
            assert_eq!(told(GO)[0], (INFO, export_info(flags)));
        }
    }
}

#[test]
fn what_follows_go_belongs_to_transmission() {
    let go = session(&[option(GO, &info_data("disk", &[]))]);
    let input = [&go[..], b"IHAVEOPT of another kind"].concat();
    assert_eq!(run(&input).0, transmission(&go, "disk", false));
}

#[test]
fn info_and_go_unknown_export_is_refused_and_the_client_may_go_on() {
    for number in [OPT_INFO, GO] {
        let replies = replies_to(&[option(number, &info_data("no\nne", &[])), option(STRUCTURED_REPLY, b"")]);
        assert_eq!(kinds(&replies), [(number, ERR_UNKNOWN), (STRUCTURED_REPLY, ACK)]);
        assert_eq!(replies[0].2, br#"there is no export "no\nne""#);
    }
}

#[test]
fn info_and_go_lengths_that_disagree_are_refused() {
    let good = info_data("disk", &[1, 3]);
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    cases.push([&good[..], &[0]].concat());
    cases.push([&good[..], &[0, 3]].concat());
    for name_len in [3u32, 5, 8, 9, 10, 4096, 0x7fff_ffff, 0xffff_fffa, 0xffff_fffc, 0xffff_ffff] {
        cases.push([&name_len.to_be_bytes(), &good[4..]].concat());
    }
    for count in [0u16, 1, 3, 0x7fff, 0x8002, 0xffff] {
        cases.push([&good[..8], &count.to_be_bytes(), &good[10..]].concat());
    }
    for data in cases {
        for number in [OPT_INFO, GO] {
            let replies = replies_to(&[option(number, &data), option(STRUCTURED_REPLY, b"")]);
            assert_eq!(kinds(&replies), [(number, ERR_INVALID), (STRUCTURED_REPLY, ACK)], "{data:?}");
        }
    }
}

#[test]
fn info_and_go_names_that_are_no_strings_are_refused() {
    let nul = info_data("di\0sk", &[]);
    let mut not_utf8 = info_data("disk", &[]);
    not_utf8[5] = 0xff;
    for number in [OPT_INFO, GO] {
        for data in [&nul, &not_utf8] {
            assert_eq!(kinds(&replies_to(&[option(number, data)])), [(number, ERR_INVALID)]);
        }
    }
}

/// CVE-2017-15118 (names of 257 to 4096 bytes), CVE-2020-10761 (the refusal of a long name).
#[test]
fn names_of_every_notable_length_are_found_or_refused() {
    for length in [1, 255, 256, 257, 4095, 4096] {
        let name = "é".repeat(length / 2) + &"x".repeat(length % 2);
        let exports = Exports { long_name: Some(name.clone()), ..Exports::default() };
        let input = session(&[option(GO, &info_data(&name, &[1]))]);
        let mut out = Vec::new();
        let progress = feed_all(&mut Handshake::default(), &input, &exports, &mut out);
        assert_eq!(progress, transmission(&input, &name, false), "{length} bytes");
        assert_eq!(parse_replies(&out)[1].2, [b"\x00\x01", name.as_bytes()].concat());

        let replies = replies_to(&[option(OPT_INFO, &info_data(&name, &[]))]);
        assert_eq!(kinds(&replies), [(OPT_INFO, ERR_UNKNOWN)]);
        assert!(replies[0].2.len() < 1024, "the name is cut");
        assert!(std::str::from_utf8(&replies[0].2).is_ok());
    }
    let replies = replies_to(&[option(OPT_INFO, &info_data(&"x".repeat(4097), &[]))]);
    assert_eq!(kinds(&replies), [(OPT_INFO, ERR_INVALID)]);
}

#[test]
fn unknown_name_full_of_escapes_stays_a_legal_string() {
    for text in ["\u{1}", "\u{10ffff}", "\"", "\\"] {
        let name = text.repeat(4096 / text.len());
        let replies = replies_to(&[option(OPT_INFO, &info_data(&name, &[]))]);
        assert_eq!(kinds(&replies), [(OPT_INFO, ERR_UNKNOWN)]);
        assert!(replies[0].2.len() <= 4096 && replies[0].2.iter().all(|byte| (32..127).contains(byte)));
    }
}

#[test]
fn too_much_data_is_read_past_and_refused() {
    for number in [OPT_INFO, GO] {
        let most = info_data("disk", &vec![3; (DATA_MAX - 10) / 2]);
        assert_eq!(most.len(), DATA_MAX);
        let replies = replies_to(&[option(OPT_INFO, &most)]);
        assert_eq!(replies.last().map(|reply| reply.1), Some(ACK));

        let more = [&most[..], &[0]].concat();
        let replies = replies_to(&[option(number, &more), option(STRUCTURED_REPLY, b"")]);
        assert_eq!(kinds(&replies), [(number, ERR_TOO_BIG), (STRUCTURED_REPLY, ACK)]);
    }
}

/// CVE-2017-15119: up to 4 GiB of data were read for one option. CVE-2022-26495: an announced length overflowed.
#[test]
fn announced_lengths_cost_nothing() {
    for number in [0, EXPORT_NAME, ABORT, LIST, STARTTLS, OPT_INFO, GO, STRUCTURED_REPLY, 0xffff_ffff] {
        for length in [SKIP_MAX + 1, 0x7fff_ffff, 0xffff_fff0, 0xffff_ffff] {
            let header = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes()].concat();
            assert_eq!(run(&session(&[header])), (Progress::Close { consumed: 20 }, vec![]));
        }
    }
    let mut handshake = Handshake::default();
    let mut out = Vec::new();
    let header = [&b"IHAVEOPT"[..], &GO.to_be_bytes(), &SKIP_MAX.to_be_bytes()].concat();
    handshake.feed(&session(&[header]), &Exports::default(), &mut out);
    let chunk = vec![0; 1 << 20];
    for left in (0..SKIP_MAX >> 20).rev() {
        assert!(out.is_empty(), "answered {left} MiB too early");
        assert_eq!(handshake.feed(&chunk, &Exports::default(), &mut out), Progress::NeedMore { consumed: 1 << 20 });
        assert!(handshake.partial.capacity() <= DATA_MAX, "nothing of it is kept");
    }
    assert_eq!(kinds(&parse_replies(&out)), [(GO, ERR_TOO_BIG)]);
}

#[test]
fn export_name_is_answered_with_size_flags_and_agreed_padding() {
    for (client_flags, padding) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        for (name, found) in [("disk", "disk"), ("", "disk"), ("other", "other")] {
            let input = [&client_flags.to_be_bytes(), &option(EXPORT_NAME, name.as_bytes())[..]].concat();
            let (progress, out) = run(&input);
            assert_eq!(progress, transmission(&input, found, false));
            let expected = [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), &vec![0; padding]].concat();
            assert_eq!(out, expected, "client flags {client_flags}");
        }
    }
}

#[test]
fn export_name_after_structured_reply_offers_df() {
    let input = session(&[option(STRUCTURED_REPLY, b""), option(EXPORT_NAME, b"disk")]);
    let (progress, out) = run(&input);
    assert_eq!(progress, transmission(&input, "disk", true));
    assert_eq!(out[28..30], (FLAGS | TRANS_SEND_DF).to_be_bytes());
}

/// CVE-2013-7441: a failed negotiation ended the whole server.
#[test]
fn export_name_that_cannot_be_served_closes_without_a_word() {
    for _ in 0..1000 {
        for name in [&b"none"[..], b"di\0sk", b"\xff", &[b'x'; 4096]] {
            let input = session(&[option(EXPORT_NAME, name)]);
            assert_eq!(run(&input), (Progress::Close { consumed: input.len() }, vec![]));
        }
    }
    let header = [&b"IHAVEOPT"[..], &EXPORT_NAME.to_be_bytes(), &4097u32.to_be_bytes()].concat();
    assert_eq!(run(&session(&[header])), (Progress::Close { consumed: 20 }, vec![]));
}

/// CVE-2019-14850: a client that names no export must not open one.
#[test]
fn half_open_clients_touch_no_export() {
    let exports = Exports::default();
    let mut out = Vec::new();
    let go = option(GO, &info_data("disk", &[3]));
    let before = session(&[option(STRUCTURED_REPLY, b""), option(LIST, b""), option(STARTTLS, b"")]);
    let input = [&before[..], &go[..go.len() - 1]].concat();
    for end in 0..=input.len() {
        feed_all(&mut Handshake::default(), &input[..end], &exports, &mut out);
    }
    assert_eq!(exports.found.get(), 0);
}

/// CVE-2019-14851: options in an odd order hit an assertion.
#[test]
fn options_in_every_order_are_answered() {
    let options = [
        (LIST, option(LIST, b""), ACK),
        (OPT_INFO, option(OPT_INFO, &info_data("other", &[3])), ACK),
        (STRUCTURED_REPLY, option(STRUCTURED_REPLY, b""), ACK),
        (LIST_META_CONTEXT, option(LIST_META_CONTEXT, b"\0\0\0\x04disk\0\0\0\0"), ACK),
        (STARTTLS, option(STARTTLS, b""), ERR_UNSUP),
        (GO, option(GO, &info_data("none", &[])), ERR_UNKNOWN),
    ];
    let mut orders = 0;
    permute(&mut (0..options.len()).collect(), 0, &mut |order| {
        let replies = replies_to(&order.iter().map(|&at| options[at].1.clone()).collect::<Vec<_>>());
        for (number, _, last) in &options {
            let of_option: Vec<_> = replies.iter().filter(|reply| reply.0 == *number).collect();
            assert_eq!(of_option.last().map(|reply| reply.1), Some(*last), "{order:?}");
        }
        orders += 1;
    });
    assert_eq!(orders, 720);
}

fn permute(order: &mut Vec<usize>, from: usize, act: &mut impl FnMut(&[usize])) {
    if from == order.len() {
        return act(order);
    }
    for at in from..order.len() {
        order.swap(from, at);
        permute(order, from + 1, act);
        order.swap(from, at);
    }
}

#[test]
fn options_without_end_are_cut_off_but_a_listing_gives_more() {
    let unknown = option(99, b"");
    let input = session(&vec![unknown.clone(); OPTIONS_MAX + 1]);
    let (progress, out) = run(&input);
    assert_eq!(progress, Progress::Close { consumed: input.len() });
    assert_eq!(parse_replies(&out).len(), OPTIONS_MAX);

    let listed = 2 * OPTIONS_PER_EXPORT - 1;
    let input = session(&[option(LIST, b""), unknown.repeat(OPTIONS_MAX + listed)]);
    assert_eq!(run(&input).0, Progress::NeedMore { consumed: input.len() });
    let input = session(&[option(LIST, b"").repeat(10), unknown.repeat(OPTIONS_MAX + listed)]);
    assert!(matches!(run(&input).0, Progress::Close { .. }), "listing again gives nothing more");
}

#[test]
fn unsent_replies_hold_up_the_options_behind_them() {
    let name = "x".repeat(4096);
    let exports = Exports { long_name: Some(name.clone()), ..Exports::default() };
    let input = session(&vec![option(OPT_INFO, &info_data(&name, &[1])); 500]);
    let mut handshake = Handshake::default();
    let (mut out, mut all) = (Vec::new(), Vec::new());
    let (mut done, mut pieces) = (0, 0);
    while done < input.len() {
        let Progress::NeedMore { consumed } = handshake.feed(&input[done..], &exports, &mut out) else {
            panic!("the handshake goes on");
        };
        assert!(consumed > 0 && out.len() <= UNSENT_MAX + 5000, "{} bytes at once", out.len());
        (done, pieces) = (done + consumed, pieces + 1);
        all.append(&mut out);
    }
    assert_eq!(parse_replies(&all).len(), 500 * 4);
    assert_eq!(pieces, all.len().div_ceil(UNSENT_MAX + 4096), "each piece is as long as it may be");
}

/// Progress and output, whatever the pieces.
fn outcome(pieces: &[&[u8]]) -> (String, Vec<u8>) {
    let mut handshake = Handshake::default();
    let exports = Exports::default();
    let mut out = Vec::new();
    let mut taken = 0;
    for piece in pieces {
        match feed_all(&mut handshake, piece, &exports, &mut out) {
            Progress::NeedMore { consumed } => {
                assert_eq!(consumed, piece.len(), "what is not wanted yet is kept by the handshake");
                taken += consumed;
            }
            Progress::Transmission { consumed, agreed } => {
                return (format!("{} {agreed:?} {}", agreed.export, taken + consumed), out);
            }
            Progress::Close { consumed } => return (format!("close {}", taken + consumed), out),
            Progress::StartTls { consumed } => return (format!("tls {}", taken + consumed), out),
        }
    }
    (format!("more {taken}"), out)
}

fn assert_splits_do_not_matter(input: &[u8], case: impl Debug) {
    let whole = outcome(&[input]);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(outcome(&bytes), whole, "one byte at a time: {case:?}");
    for at in 0..=input.len() {
        assert_eq!(outcome(&[&input[..at], &input[at..]]), whole, "cut at {at}: {case:?}");
    }
}

#[test]
fn pieces_of_the_input_do_not_matter() {
    let info = info_data("disk", &[0, 1, 2, 3]);
    let cases = [
        session(&[option(STRUCTURED_REPLY, b""), option(LIST, b""), option(GO, &info), b"more".to_vec()]),
        session(&[option(OPT_INFO, &info), option(77, b"data"), option(EXPORT_NAME, b"other"), b"more".to_vec()]),
        session(&[option(LIST, b"data"), option(ABORT, b"data"), b"more".to_vec()]),
        session(&[option(GO, b"bad"), option(GO, &info_data("none", &[])), option(EXPORT_NAME, b"none")]),
        session(&[option(EXPORT_NAME, b"")]),
        [&[0, 0, 0, 4][..], &option(LIST, b"")].concat(),
    ];
    for (number, input) in cases.iter().enumerate() {
        assert_splits_do_not_matter(input, number);
    }
}

/// xorshift64*: repeatable from the seed that a failure prints.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is small.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 56) as u8).collect()
    }

    fn option(&mut self) -> Vec<u8> {
        let names = ["", "disk", "other", "none", "d\0", "é"];
        let name = names[self.below(names.len())];
        let requests: Vec<u16> = (0..self.below(6)).map(|_| self.below(5) as u16).collect();
        let number =
            [EXPORT_NAME, ABORT, LIST, STARTTLS, OPT_INFO, GO, STRUCTURED_REPLY, 9, 10, 11, 12][self.below(11)];
        let data = match self.below(5) {
            0 => vec![],
            4 => meta_data(name, &["base:allocation", "x-ubi:", ""][..self.below(4)]),
            1 => name.as_bytes().to_vec(),
            2 => {
                let count = self.below(40);
                self.bytes(count)
            }
            _ => info_data(name, &requests),
        };
        option(number, &data)
    }

    /// A session, most of it sensible, then damaged in a few places.
    fn session(&mut self) -> Vec<u8> {
        if self.below(16) == 0 {
            let count = self.below(200);
            return self.bytes(count);
        }
        let options: Vec<_> = (0..1 + self.below(8)).map(|_| self.option()).collect();
        let mut input = session(&options);
        for _ in 0..self.below(4) {
            let at = self.below(input.len());
            match self.below(4) {
                0 => input[at] = (self.next() >> 56) as u8,
                1 => input[at] ^= 1 << self.below(8),
                2 => input.truncate(at + 1),
                _ => drop(input.splice(at..at, [0xff; 4])),
            }
        }
        input
    }
}

/// Hostile input by the hundred thousand: never a panic, output and memory bounded, the same in any pieces.
/// `NBD_FUZZ_SEED` repeats one.
#[test]
fn fuzz_any_input_is_survived() {
    let one = std::env::var("NBD_FUZZ_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = one.map_or(1..=100_000, |seed| seed..=seed);
    let mut ends = [0; 3];
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let input = random.session();
        let whole = std::panic::catch_unwind(|| outcome(&[&input]));
        let Ok((end, out)) = whole else { panic!("NBD_FUZZ_SEED={seed}: panic on {input:?}") };
        // The longest answer to 16 bytes is the listing of 110 bytes; transmission adds 134 and is the last.
        assert!(out.len() <= input.len() / 16 * 150 + 200, "NBD_FUZZ_SEED={seed}: {} bytes out", out.len());
        if !end.starts_with("disk") && !end.starts_with("other") {
            parse_replies(&out);
        }
        let cut = random.below(input.len() + 1);
        assert_eq!(outcome(&[&input[..cut], &input[cut..]]), (end.clone(), out), "NBD_FUZZ_SEED={seed} cut at {cut}");
        ends[match end.split_once(' ') {
            Some(("close", _)) => 0,
            Some(("more", _)) => 1,
            _ => 2,
        }] += 1;
    }
    println!("closed {} waiting {} transmission {}", ends[0], ends[1], ends[2]);
    assert!(one.is_some() || ends.iter().all(|&count| count > 5_000), "every end is reached often: {ends:?}");
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).expect("short").to_be_bytes();
    let mut data = [&length(name)[..], name.as_bytes()].concat();
    data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
    for query in queries {
        data.extend(length(query));
        data.extend(query.bytes());
    }
    data
}

const META_CONTEXT: u32 = 4;

/// The names that an option about contexts is answered with, each with its id; the option has to succeed.
fn contexts_of(replies: &[Reply]) -> Vec<(u32, String)> {
    let (last, contexts) = replies.split_last().expect("at least the end");
    assert_eq!((last.1, &last.2[..]), (ACK, &b""[..]));
    let parse = |reply: &Reply| {
        assert_eq!(reply.1, META_CONTEXT);
        let id = u32::from_be_bytes(reply.2[..4].try_into().expect("4 bytes"));
        (id, String::from_utf8(reply.2[4..].to_vec()).expect("text"))
    };
    contexts.iter().map(parse).collect()
}

#[test]
fn list_meta_context_without_queries_names_all_and_else_what_matches() {
    let all = ["base:allocation", "qemu:allocation-depth", "x-ubi:fetch"];
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &all),
        (&["base:", "x-ubi:", "qemu:"], &all),
        (&["base:"], &all[..1]),
        (&["qemu:"], &all[1..2]),
        (&["x-ubi:fetch", "base:allocation"], &["base:allocation", "x-ubi:fetch"]),
        (&["nobody:knows", "x-other:", "base:other", ""], &[]),
        (&["qemu:dirty-bitmap:", "qemu:dirty-bitmap:a", "qemu"], &[]),
        (&["base:", "base:allocation", "base:"], &all[..1]),
    ];
    for (queries, names) in cases {
        for structured in [false, true] {
            let mut options = vec![option(LIST_META_CONTEXT, &meta_data("disk", queries))];
            if structured {
                options.insert(0, option(STRUCTURED_REPLY, b""));
            }
            let replies = replies_to(&options);
            let found = contexts_of(&replies[usize::from(structured)..]);
            assert_eq!(found, names.iter().map(|name| (0, (*name).to_owned())).collect::<Vec<_>>(), "{queries:?}");
        }
    }
}

#[test]
fn set_meta_context_takes_names_and_no_wildcards() {
    type Case<'a> = (&'a [&'a str], &'a [(u32, &'a str)]);
    let cases: [Case<'_>; 5] = [
        (&[], &[]),
        (&["base:", "qemu:", "x-ubi:"], &[]),
        (&["base:allocation", "base:allocation"], &[(1, "base:allocation")]),
        (&["x-ubi:fetch", "no:thing", "base:allocation"], &[(1, "base:allocation"), (3, "x-ubi:fetch")]),
        (&["qemu:allocation-depth"], &[(2, "qemu:allocation-depth")]),
    ];
    for (queries, names) in cases {
        let set = option(SET_META_CONTEXT, &meta_data("disk", queries));
        let replies = replies_to(&[option(STRUCTURED_REPLY, b""), set.clone()]);
        let expected: Vec<_> = names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect();
        assert_eq!(contexts_of(&replies[1..]), expected, "{queries:?}");
        let input = session(&[option(STRUCTURED_REPLY, b""), set, option(GO, &info_data("disk", &[]))]);
        let chosen: Vec<u32> = agreed(&input).contexts.iter().map(|context| context.id()).collect();
        assert_eq!(chosen, names.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    }
}

#[test]
fn set_meta_context_needs_structured_replies() {
    let set = option(SET_META_CONTEXT, &meta_data("disk", &["base:allocation"]));
    let replies = replies_to(&[set.clone(), option(STRUCTURED_REPLY, b"")]);
    assert_eq!(kinds(&replies), [(SET_META_CONTEXT, ERR_INVALID), (STRUCTURED_REPLY, ACK)]);
    let input = session(&[set, option(STRUCTURED_REPLY, b""), option(GO, &info_data("disk", &[]))]);
    assert!(agreed(&input).contexts.is_empty(), "a refused choice is none");
}

#[test]
fn contexts_are_those_of_the_last_choice_and_of_its_export() {
    let set = |name: &str, queries: &[&str]| option(SET_META_CONTEXT, &meta_data(name, queries));
    let base = set("disk", &["base:allocation"]);
    let truncated = option(SET_META_CONTEXT, &meta_data("disk", &["base:allocation"])[..9]);
    let cases: [(Vec<u8>, &str, bool); 9] = [
        (base.clone(), "disk", true),
        (base.clone(), "", true),
        (set("", &["base:allocation"]), "disk", true),
        (base.clone(), "other", false),
        ([base.clone(), set("disk", &[])].concat(), "disk", false),
        ([base.clone(), set("none", &["base:allocation"])].concat(), "disk", false),
        ([base.clone(), set("other", &["base:allocation"])].concat(), "disk", false),
        ([base.clone(), truncated].concat(), "disk", false),
        ([base.clone(), option(LIST_META_CONTEXT, &meta_data("other", &["base:"]))].concat(), "disk", true),
    ];
    for (number, (options, name, kept)) in cases.into_iter().enumerate() {
        for end in [option(GO, &info_data(name, &[])), option(EXPORT_NAME, name.as_bytes())] {
            let input = session(&[option(STRUCTURED_REPLY, b""), options.clone(), end]);
            assert_eq!(!agreed(&input).contexts.is_empty(), kept, "case {number}");
        }
    }
}

#[test]
fn meta_context_lengths_that_disagree_are_refused() {
    let good = meta_data("disk", &["base:allocation", "x-ubi:"]);
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    cases.push([&good[..], &[0]].concat());
    cases.push([&good[..], &[0; 4]].concat());
    for length in [3u32, 5, 0x7fff_ffff, 0xffff_fffc, 0xffff_ffff] {
        cases.push([&length.to_be_bytes(), &good[4..]].concat()); // the name's
        cases.push([&good[..8], &length.to_be_bytes(), &good[12..]].concat()); // the number of queries
        cases.push([&good[..12], &length.to_be_bytes(), &good[16..]].concat()); // the first query's
    }
    cases.push(meta_data("disk", &[&"x".repeat(4097)]));
    cases.push(meta_data("di\0sk", &[]));
    cases.push(meta_data(&"x".repeat(4097), &[]));
    for data in cases {
        for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            let replies = replies_to(&[option(STRUCTURED_REPLY, b""), option(number, &data), option(LIST, b"")]);
            assert_eq!(kinds(&replies[1..2]), [(number, ERR_INVALID)], "{data:?}");
            assert_eq!(replies.last().map(|reply| reply.1), Some(ACK));
        }
    }
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        let unknown = option(number, &meta_data("none", &[]));
        let long = option(number, &meta_data("disk", &vec!["x"; DATA_MAX / 4]));
        let replies = replies_to(&[option(STRUCTURED_REPLY, b""), unknown, long]);
        assert_eq!(kinds(&replies[1..]), [(number, ERR_UNKNOWN), (number, ERR_TOO_BIG)]);
    }
}

#[test]
fn who_asks_for_the_block_sizes_with_go_has_agreed_to_them() {
    for (requests, asked) in [(&[][..], false), (&[0, 1, 2], false), (&[3], true), (&[2, 3], true)] {
        let input = session(&[option(GO, &info_data("disk", requests))]);
        assert_eq!(agreed(&input).block_sizes, asked);
        let input = session(&[option(OPT_INFO, &info_data("disk", &[3])), option(GO, &info_data("disk", requests))]);
        assert_eq!(agreed(&input).block_sizes, asked, "INFO alone agrees on nothing");
    }
    assert!(!agreed(&session(&[option(EXPORT_NAME, b"disk")])).block_sizes);
}

const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

#[test]
fn extended_headers_imply_structured_replies_and_forbid_what_is_older() {
    let (extended, structured) = (option(EXTENDED_HEADERS, b""), option(STRUCTURED_REPLY, b""));
    let replies = replies_to(&[structured.clone(), extended.clone(), extended.clone(), structured]);
    let expected = [
        (STRUCTURED_REPLY, ACK),
        (EXTENDED_HEADERS, ACK),
        (EXTENDED_HEADERS, ERR_INVALID),
        (STRUCTURED_REPLY, ERR_EXT_HEADER_REQD),
    ];
    assert_eq!(kinds(&replies), expected);
    let set = option(SET_META_CONTEXT, &meta_data("disk", &["base:allocation"]));
    let input = session(&[extended.clone(), set, option(GO, &info_data("disk", &[]))]);
    let agreed = agreed(&input);
    assert!(agreed.extended_headers && agreed.structured_replies && !agreed.contexts.is_empty());
    let info = parse_replies(&run(&input).1)
        .into_iter()
        .find(|reply| reply.1 == INFO && reply.2.starts_with(&[0, 0]))
        .expect("INFO_EXPORT");
    assert_eq!(info.2[10..], (FLAGS | TRANS_SEND_DF | 1 << 12).to_be_bytes());
    let input = session(&[extended, option(EXPORT_NAME, b"disk")]);
    let (progress, out) = run(&input);
    assert_eq!((progress, parse_replies(&out).len()), (Progress::Close { consumed: input.len() }, 1));
}
