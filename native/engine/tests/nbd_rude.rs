//! Wrong requests and wrong handshakes on the wire, as tables: each gets its error, the connection lives where the
//! protocol says so, and the listener always does. Both I/O engines, every dialect.

mod nbd_support;

use std::io::{Read, Write};
use std::net::Shutdown;

use nbd_support::client::*;
use nbd_support::*;

const OPAQUE: u16 = 0x5a5a;

/// Command, flags, offset, length, and the error that NBD has for it on an export of SIZE bytes.
const WRONG: [(u16, u16, u64, u64, u32); 46] = [
    (READ, 0, SIZE, 512, EINVAL),
    (READ, 0, SIZE - 512, 1024, EINVAL),
    (READ, 0, u64::MAX, 1, EINVAL),
    (READ, 0, u64::MAX - 511, 512, EINVAL),
    (READ, 0, 1 << 63, 512, EINVAL),
    (READ, 0, 0, (64 << 20) + 1, EINVAL),
    (READ, 0, 0, 0xffff_ffff, EINVAL),
    (READ, NO_HOLE, 0, 512, EINVAL),
    (READ, REQ_ONE, 0, 512, EINVAL),
    (READ, FAST_ZERO, 0, 512, EINVAL),
    (READ, 1 << 6, 0, 512, EINVAL),
    (READ, 1 << 15, 0, 512, EINVAL),
    (WRITE, 0, SIZE, 512, ENOSPC),
    (WRITE, 0, SIZE - 512, 1024, ENOSPC),
    (WRITE, 0, SIZE - 1, 2, ENOSPC),
    (WRITE, 0, u64::MAX, 1, ENOSPC),
    (WRITE, 0, u64::MAX - 511, 512, ENOSPC),
    (WRITE, 0, SIZE, 300_000, ENOSPC),
    (WRITE, NO_HOLE, 0, 512, EINVAL),
    (WRITE, DF, 0, 512, EINVAL),
    (WRITE, REQ_ONE, 0, 70_000, EINVAL),
    (WRITE, FAST_ZERO, 0, 512, EINVAL),
    (WRITE, 1 << 14, 0, 1, EINVAL),
    (FLUSH, DF, 0, 0, EINVAL),
    (FLUSH, NO_HOLE, 0, 0, EINVAL),
    (FLUSH, 1 << 7, 0, 0, EINVAL),
    (TRIM, 0, SIZE, 512, EINVAL),
    (TRIM, 0, SIZE - 512, 513, EINVAL),
    (TRIM, 0, u64::MAX - 1, 0xffff_ffff, EINVAL),
    (TRIM, NO_HOLE, 0, 512, EINVAL),
    (TRIM, FAST_ZERO, 0, 512, EINVAL),
    (CACHE, 0, SIZE, 1, EINVAL),
    (CACHE, 0, 0, SIZE + 1, EINVAL),
    (CACHE, DF, 0, 512, EINVAL),
    (CACHE, REQ_ONE, 0, 512, EINVAL),
    (WRITE_ZEROES, 0, SIZE, 512, ENOSPC),
    (WRITE_ZEROES, 0, 0, 0xffff_ffff, ENOSPC),
    (WRITE_ZEROES, 0, u64::MAX - 511, 1024, ENOSPC),
    (WRITE_ZEROES, FAST_ZERO, SIZE, 512, ENOSPC),
    (WRITE_ZEROES, DF, 0, 512, EINVAL),
    (WRITE_ZEROES, REQ_ONE | FUA, 0, 512, EINVAL),
    (BLOCK_STATUS, 0, 0, 512, EINVAL),
    (BLOCK_STATUS, REQ_ONE, 0, 512, EINVAL),
    (8, 0, SIZE * 2, 0, EINVAL),
    (9, 0, 0, 512, EINVAL),
    (OPAQUE, OPAQUE, 0, 512, EINVAL),
];

#[test]
fn wrong_requests_of_every_dialect_get_their_error_and_the_connection_lives() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        let mut cases = 0;
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut client = server.connect("m", &Wish::new(dialect));
            for (number, (command, flags, offset, length, error)) in WRONG.into_iter().enumerate() {
                let payload = if command == WRITE { vec![0x77; length as usize] } else { Vec::new() };
                // A payload length belongs to a payload; OPAQUE has that bit too.
                let flags = if dialect == Dialect::Extended { flags & !PAYLOAD_LEN } else { flags };
                let replied = client.call(command, flags, offset, length, &payload);
                assert_eq!(replied.error, error, "{dialect:?}, case {number}");
                assert!(replied.data.is_empty() && replied.holes.is_empty() && replied.status.is_empty());
                cases += 1;
            }
            assert_eq!(client.read(0, SIZE), vec![0; SIZE as usize], "nothing of that was written");
        }
        assert!(cases > 100, "{cases} cases");
        let mut simple = server.connect("m", &Wish::new(Dialect::Simple));
        assert_eq!(simple.call(READ, DF, 0, 512, &[]).error, EINVAL, "DF needs structured replies");
    });
}

#[test]
fn requests_of_no_bytes_succeed_and_do_nothing() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut client = server.connect("m", &Wish::new(dialect));
            for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
                for offset in [0, 1, 512, SIZE] {
                    assert_eq!(client.call(command, 0, offset, 0, &[]).error, 0, "{dialect:?} {command} at {offset}");
                }
            }
        }
    });
}

/// What a client sends after the greeting, and whether the server then ends the connection by itself.
fn wrong_handshakes() -> Vec<(Vec<u8>, bool)> {
    let flags = 3u32.to_be_bytes().to_vec();
    let with = |options: &[Vec<u8>]| [flags.clone(), options.concat()].concat();
    let header = |number: u32, length: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes()].concat();
    let mut cases: Vec<(Vec<u8>, bool)> = (2..32).map(|bit| ((1u32 << bit).to_be_bytes().to_vec(), true)).collect();
    cases.push((with(&[b"IHAVEOPX\0\0\0\x03\0\0\0\0".to_vec()]), true));
    cases.push((with(&[vec![0; 16]]), true));
    cases.push((with(&[option(OPT_EXPORT_NAME, b"absent")]), true));
    cases.push((with(&[option(OPT_EXTENDED_HEADERS, b""), option(OPT_EXPORT_NAME, b"m")]), true));
    cases.push((with(&[option(OPT_ABORT, b"whatever")]), true));
    for number in [0, OPT_EXPORT_NAME, OPT_LIST, OPT_STARTTLS, OPT_GO, OPT_SET_META_CONTEXT, 12, u32::MAX] {
        cases.push((with(&[header(number, u32::MAX)]), true));
        // Half an option: the server waits for the rest, and the client's leaving ends it.
        cases.push((with(&[header(number, 100)]), false));
        cases.push((with(&[header(number, 0)[..9].to_vec()]), false));
    }
    for number in [OPT_INFO, OPT_GO, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        for data in
            [&b""[..], b"\0", b"\xff\xff\xff\xff", b"\0\0\0\x01m", b"\0\0\0\x01m\xff\xff", b"\0\0\0\x01m\0\0\0\x09"]
        {
            cases.push((with(&[option(number, data)]), false));
        }
    }
    cases
}

#[test]
fn wrong_handshakes_end_alone() {
    let cases = wrong_handshakes();
    assert!(cases.len() > 80);
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        for (number, (bytes, ends)) in cases.iter().enumerate() {
            let mut stream = greeted(&server.path());
            stream.write_all(bytes).expect("send");
            if !ends {
                stream.shutdown(Shutdown::Write).expect("half-close");
            }
            let mut answer = Vec::new();
            // A server that closes with something unread resets the connection; either is an end.
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 1000, "case {number}");
        }
        for end in 0..60 {
            let whole = [3u32.to_be_bytes().to_vec(), option(OPT_GO, &go_data("m", &[1, 2, 3]))].concat();
            let mut stream = greeted(&server.path());
            stream.write_all(&whole[..end.min(whole.len())]).expect("send");
        }
        assert_eq!(server.connect("m", &Wish::new(Dialect::Extended)).read(0, 512), vec![0; 512]);
    });
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_and_half_closes_gets_its_answers() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut client = server.connect("m", &Wish::new(dialect));
            let flags = if dialect == Dialect::Extended { PAYLOAD_LEN } else { 0 };
            let mut bytes = client.request(WRITE, flags, 1, 512, 100);
            bytes.extend([8; 100]);
            bytes.extend(client.request(READ, 0, 2, 600, 24));
            for byte in bytes {
                client.stream.write_all(&[byte]).expect("send");
            }
            assert_eq!(
                (client.reply(512, 0).error, client.reply(600, 24).bytes(600, 24)),
                (0, [[8; 12], [0; 12]].concat())
            );
            client.stream.shutdown(Shutdown::Write).expect("half-close");
            assert!(client.is_closed());
        }
    });
}
