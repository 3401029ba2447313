//! Whatever comes in during the handshake: it ends, its answers are bounded and well-formed, and how the bytes are cut
//! into pieces makes no difference.
//!
//! The first byte chooses the server's TLS and whether the export lets anybody in, the second the length of the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ubi_engine::frontend::nbd::handshake::{
    ExportDescription, ExportDirectory, ExportListing, Handshake, NoEntry, Progress, Tls,
};

/// Answers that one piece of input may bring up before the server has to send: its own bound, and one listing more.
const ANSWERS_MAX: usize = (256 << 10) + (64 << 10);

struct Exports {
    is_full: bool,
}

impl ExportDirectory for Exports {
    fn list(&self) -> Vec<ExportListing> {
        ["disk", "d\u{e9}j\u{e0} vu"]
            .map(|name| ExportListing { name: name.into(), description: "d".repeat(300) })
            .into()
    }

    fn find(&self, name: &str) -> Option<ExportDescription> {
        matches!(name, "" | "disk").then(|| ExportDescription {
            name: "disk".into(),
            size_bytes: 1 << 30,
            transmission_flags: 0x0d6d,
            description: "a disk".into(),
            min_block: 512,
            preferred_block: 4096,
            max_payload: 64 << 20,
        })
    }

    fn enter(&self, _name: &str) -> Result<(), NoEntry> {
        if self.is_full { Err(NoEntry::Policy("full".into())) } else { Ok(()) }
    }
}

/// How a conversation went.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answers: Vec<u8>,
    consumed: usize,
    end: Option<Progress>,
}

fn converse(mut handshake: Handshake, input: &[u8], exports: &Exports, piece_max: usize) -> Outcome {
    let mut outcome = Outcome { answers: Vec::new(), consumed: 0, end: None };
    handshake.greeting(&mut outcome.answers);
    while outcome.end.is_none() && outcome.consumed < input.len() {
        let rest = &input[outcome.consumed..];
        let mut out = Vec::new();
        let progress = handshake.feed(&rest[..rest.len().min(piece_max)], exports, &mut out);
        assert!(out.len() <= ANSWERS_MAX, "{} bytes of answers", out.len());
        let (consumed, end) = match progress {
            Progress::NeedMore { consumed } => (consumed, None),
            Progress::StartTls { consumed } => (consumed, Some(Progress::StartTls { consumed: 0 })),
            Progress::Transmission { consumed, agreed } => {
                (consumed, Some(Progress::Transmission { consumed: 0, agreed }))
            }
            Progress::Close { consumed } => (consumed, Some(Progress::Close { consumed: 0 })),
        };
        assert!(consumed <= rest.len().min(piece_max));
        outcome.consumed += consumed;
        outcome.answers.append(&mut out);
        outcome.end = end;
    }
    outcome
}

/// Every answer but EXPORT_NAME's, which has no header, is an option reply of a length that clients accept.
fn check_answers(answers: &[u8]) {
    let mut rest = &answers[18..];
    while rest.len() >= 20 && rest[..8] == 0x3_e889_0455_65a9u64.to_be_bytes() {
        let length = u32::from_be_bytes([rest[16], rest[17], rest[18], rest[19]]) as usize;
        assert!(length <= 4 + 2 * 4096, "{length} bytes in one reply");
        rest = rest.get(20 + length..).expect("a reply has as many bytes as it says");
    }
    assert!(matches!(rest.len(), 0 | 10 | 134), "{} bytes that are no answer", rest.len());
}

fuzz_target!(|data: &[u8]| {
    let [mode, piece, input @ ..] = data else { return };
    let tls = [Tls::Off, Tls::Offered, Tls::Required, Tls::Active][usize::from(mode & 3)];
    let exports = Exports { is_full: mode & 4 != 0 };
    let whole = converse(Handshake::with_tls(tls), input, &exports, usize::MAX);
    check_answers(&whole.answers);
    let pieces = converse(Handshake::with_tls(tls), input, &exports, usize::from(*piece).max(1));
    assert_eq!(whole, pieces);
    if tls == Tls::Required {
        assert!(!matches!(whole.end, Some(Progress::Transmission { .. })), "let in without TLS");
    }
});
