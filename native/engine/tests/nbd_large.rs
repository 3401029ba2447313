//! Large requests: payloads in pieces and behind one another, replies that wait for no further request, and reads that
//! leave straight from a file, taken slowly, cut off, or with the file cut short. On a real socket, on both I/O engines.

mod nbd_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::aio::Cache;

const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];
const LARGE: u64 = 128 * KIB;

/// Bytes that tell their place and are never zero.
fn pattern(seed: u64, offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| ((at / 512 * 31 + at + seed * 7) % 251 + 1) as u8).collect()
}

/// What large writes go to: a file past the cache, one in the cache, memory, an overlay.
fn exports(server: &Server) -> [&'static str; 4] {
    server.export("direct", server.aio("direct", SIZE, 512, Cache::None));
    server.export("cached", server.aio("cached", SIZE, 512, Cache::Writeback));
    server.export("memory", server.malloc(4096));
    server.export("ubi", server.ubi(512).0);
    ["direct", "cached", "memory", "ubi"]
}

#[test]
fn large_writes_behind_one_another_all_arrive_however_they_are_cut() {
    on_every_engine(|server| {
        for export in exports(server) {
            for (turn, dialect) in DIALECTS.into_iter().enumerate() {
                let mut client = server.connect(export, &Wish::new(dialect));
                // Sizes around what is received with the headers, at the block and beside it, small ones between them.
                let sizes = [LARGE, 65536, 65537, 512, 300_000, LARGE + 512, 4096, 66_000, 256 * KIB, LARGE];
                let (mut bytes, mut place, mut wanted) = (Vec::new(), 0, Vec::new());
                for (cookie, &size) in sizes.iter().enumerate() {
                    let flags = if dialect == Dialect::Extended { PAYLOAD_LEN } else { 0 };
                    bytes.extend(client.request(WRITE, flags, cookie as u64, place, size));
                    let data = pattern(turn as u64, place, size);
                    bytes.extend(&data);
                    wanted.push((place, data));
                    place += size;
                }
                let mut stream = client.stream.try_clone().expect("clone");
                let sender = std::thread::spawn(move || {
                    let mut rest = &bytes[..];
                    for piece in [usize::MAX, 1, 27, 70_001, 131_072, 40_000].into_iter().cycle().skip(turn) {
                        let (now, after) = rest.split_at(piece.min(rest.len()).min(500_000));
                        stream.write_all(now).expect("send");
                        rest = after;
                        if rest.is_empty() {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                let mut cookies = Vec::new();
                for _ in &sizes {
                    // Extended replies echo the offset, and they come in any order: read them by hand.
                    let (cookie, error) = any_reply(&mut client, dialect);
                    assert_eq!(error, 0, "{export} {dialect:?}");
                    cookies.push(cookie);
                }
                cookies.sort_unstable();
                assert!(cookies.into_iter().eq(0..sizes.len() as u64), "each is answered once");
                sender.join().expect("sent");
                for (place, data) in wanted {
                    assert!(client.read(place, data.len() as u64) == data, "{export} {dialect:?} at {place}");
                }
            }
        }
    });
}

/// Pieces that take a page each wherever they are kept: many more pages than the payload has.
#[test]
fn a_large_write_in_small_pieces_arrives_and_so_do_those_around_it() {
    on_every_engine(|server| {
        for export in exports(server) {
            let mut client = server.connect(export, &Wish::new(Dialect::Simple));
            client.write(0, &pattern(0, 0, SIZE));
            for (turn, piece) in [(1, 301), (2, 4097), (3, LARGE as usize), (4, 150)] {
                for cookie in 0..3 {
                    let place = cookie * 3 * LARGE + turn * 512;
                    let mut stream = &client.stream;
                    stream.write_all(&client.request(WRITE, 0, cookie, place, LARGE)).expect("header");
                    let data = pattern(turn, place, LARGE);
                    data.chunks(piece).for_each(|piece| stream.write_all(piece).expect("a piece"));
                }
                let mut cookies: Vec<u64> = (0..3).map(|_| client.reply(0, 0)).map(|reply| reply.cookie).collect();
                cookies.sort_unstable();
                assert_eq!(cookies, [0, 1, 2], "{export}");
                for cookie in 0..3 {
                    let place = cookie * 3 * LARGE + turn * 512;
                    assert!(client.read(place, LARGE) == pattern(turn, place, LARGE), "{export} {piece} {cookie}");
                }
            }
        }
    });
}

/// Cookie and error of the next reply without a payload, whichever request it is to.
fn any_reply(client: &mut Client, dialect: Dialect) -> (u64, u32) {
    let mut bytes = [0; 32];
    let reply = &mut bytes[..if dialect == Dialect::Extended { 32 } else { 16 }];
    client.stream.read_exact(reply).expect("a reply");
    let long = |at: usize| u64::from_be_bytes(reply[at..at + 8].try_into().expect("eight bytes"));
    match dialect {
        Dialect::Extended => {
            assert_eq!((&reply[4..8], long(24)), (&[0, 1, 0, 0][..], 0), "the last chunk, and it is empty");
            (long(8), 0)
        }
        Dialect::Simple | Dialect::Structured => (long(8), (long(4) >> 32) as u32),
    }
}

#[test]
fn a_large_write_is_answered_although_the_next_one_stops_in_its_middle() {
    on_every_engine(|server| {
        for export in exports(server) {
            let mut client = server.connect(export, &Wish::new(Dialect::Simple));
            for cookie in 0..4 {
                client.send(WRITE, 0, cookie, cookie * LARGE, LARGE, &pattern(1, cookie * LARGE, LARGE));
            }
            let last = client.request(WRITE, 0, 4, 4 * LARGE, LARGE);
            client.stream.write_all(&last).expect("header");
            client.stream.write_all(&vec![3; 1000]).expect("part of the payload");
            let mut cookies: Vec<u64> = (0..4).map(|_| client.reply(0, 0).cookie).collect();
            cookies.sort_unstable();
            assert_eq!(cookies, [0, 1, 2, 3], "{export}");
            client.stream.write_all(&vec![3; LARGE as usize - 1000]).expect("the rest");
            let last = client.reply(0, 0);
            assert_eq!((last.cookie, last.error), (4, 0));
            assert!(client.read(0, 4 * LARGE) == pattern(1, 0, 4 * LARGE));
        }
    });
}

/// A write whose payload is here may wait for the header behind it, but not for what does not come, nor is it forgotten.
#[test]
fn a_large_write_is_carried_out_and_answered_whatever_follows_it() {
    on_every_engine(|server| {
        for export in exports(server) {
            let mut witness = server.connect(export, &Wish::new(Dialect::Simple));
            let read = witness.request(READ, 0, 2, 6 * LARGE, 512);
            let flush = witness.request(FLUSH, 0, 2, 0, 0);
            let large = witness.request(WRITE, 0, 2, 2 * LARGE, LARGE);
            let fua = witness.request(WRITE, FUA, 2, 2 * LARGE, LARGE);
            let leave = witness.request(DISC, 0, 2, 0, 0);
            let noise = vec![0xee; 28];
            let tails = [&[][..], &large[..1], &large[..27], &large, &fua, &read[..27], &read, &flush, &leave, &noise];
            for (turn, tail) in (0..).zip(tails) {
                for is_last in [false, true] {
                    let mut client = server.connect(export, &Wish::new(Dialect::Simple));
                    client.send(WRITE, 0, 0, 0, LARGE, &pattern(turn, 0, LARGE)); // so that the next header comes alone
                    let mut bytes = client.request(WRITE, 0, 1, LARGE, LARGE);
                    bytes.extend(pattern(turn, LARGE, LARGE));
                    bytes.extend(tail);
                    client.stream.write_all(&bytes).expect("send");
                    if is_last {
                        client.stream.shutdown(Shutdown::Write).expect("shutdown");
                    }
                    let answers_tail = tail == read || tail == flush;
                    let mut cookies = Vec::new();
                    for _ in 0..2 + u32::from(answers_tail) {
                        let (cookie, error) = any_reply(&mut client, Dialect::Simple);
                        assert_eq!(error, 0, "{export} {turn}");
                        if cookie == 2 && tail == read {
                            client.stream.read_exact(&mut [0; 512]).expect("data");
                        }
                        cookies.push(cookie);
                    }
                    cookies.sort_unstable();
                    assert!(cookies.into_iter().eq(0..2 + u64::from(answers_tail)), "{export} {turn}");
                    assert!(witness.read(0, 2 * LARGE) == pattern(turn, 0, 2 * LARGE), "{export} {turn}");
                }
            }
        }
    });
}

/// What was answered in place waits for the payload behind it, but not when that stops coming.
#[test]
fn small_requests_are_answered_although_the_large_write_behind_them_stops_in_its_middle() {
    on_every_engine(|server| {
        for export in exports(server) {
            let mut client = server.connect(export, &Wish::new(Dialect::Simple));
            let mut bytes = client.request(WRITE, 0, 0, 4 * LARGE, 4096);
            bytes.extend(pattern(8, 0, 4096));
            bytes.extend(client.request(WRITE, 0, 1, 0, LARGE));
            bytes.extend(vec![3; 1000]);
            client.stream.write_all(&bytes).expect("send");
            assert_eq!(client.reply(0, 0).cookie, 0, "{export}");
            client.stream.write_all(&vec![3; LARGE as usize - 1000]).expect("the rest");
            assert_eq!(client.reply(0, 0).cookie, 1, "{export}");
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_payload_has_changed_nothing() {
    on_every_engine(|server| {
        for export in exports(server) {
            let mut witness = server.connect(export, &Wish::new(Dialect::Simple));
            witness.write(0, &pattern(5, 0, MIB));
            for sent in [0, 1, 484, 4096, LARGE as usize - 1] {
                let mut client = server.connect(export, &Wish::new(Dialect::Simple));
                client.send(WRITE, 0, 0, 0, LARGE, &pattern(5, 0, LARGE)); // so that the next header comes alone
                let header = client.request(WRITE, 0, 1, LARGE, LARGE);
                client.stream.write_all(&header).expect("header");
                client.stream.write_all(&vec![9; sent]).expect("part of the payload");
                drop(client);
            }
            while server.listener.exports().iter().map(|(_, clients)| clients).sum::<usize>() > 1 {
                std::thread::yield_now();
            }
            assert!(witness.read(0, MIB) == pattern(5, 0, MIB), "{export}");
        }
    });
}

#[test]
fn reads_that_leave_straight_from_a_file_arrive_whole_however_slowly_they_are_taken() {
    on_every_engine(|server| {
        server.export("cached", server.aio("cached", SIZE, 512, Cache::Writeback));
        server.export("ubi", server.ubi(512).0);
        for export in ["cached", "ubi"] {
            let mut writer = server.connect(export, &Wish::new(Dialect::Simple));
            writer.write(0, &pattern(2, 0, SIZE));
            for dialect in DIALECTS {
                let mut client = server.connect(export, &Wish::new(dialect));
                // Far more than a socket holds, small replies between the large ones.
                let reads: Vec<(u64, u64)> =
                    (0..24).map(|index| (index * 512, [MIB, LARGE, 4096, 70_144][index as usize % 4])).collect();
                for (cookie, &(offset, length)) in reads.iter().enumerate() {
                    client.send(READ, 0, cookie as u64, offset, length, &[]);
                }
                for (cookie, &(offset, length)) in reads.iter().enumerate() {
                    std::thread::sleep(Duration::from_millis(2));
                    let replied = client.reply(offset, length);
                    assert_eq!(replied.cookie, cookie as u64, "what is at hand is answered in order");
                    assert!(replied.bytes(offset, length) == pattern(2, offset, length), "{export} {dialect:?}");
                }
            }
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_large_read_harms_nobody() {
    on_every_engine(|server| {
        server.export("cached", server.aio("cached", SIZE, 512, Cache::Writeback));
        let mut witness = server.connect("cached", &Wish::new(Dialect::Simple));
        witness.write(0, &pattern(3, 0, SIZE));
        for taken in [0, 1, 16, 17, 100_000] {
            let mut client = server.connect("cached", &Wish::new(Dialect::Simple));
            for cookie in 0..16 {
                client.send(READ, 0, cookie, 0, SIZE, &[]);
            }
            client.stream.read_exact(&mut vec![0; taken]).expect("a part");
            drop(client);
            assert!(witness.read(MIB, LARGE) == pattern(3, MIB, LARGE));
        }
    });
}

/// Bytes that were promised and that the file does not have any more cannot be taken back: the connection ends.
#[test]
fn a_file_cut_short_under_a_read_ends_the_connection_or_fails_the_read() {
    on_every_engine(|server| {
        server.export("cached", server.aio("cached", SIZE, 512, Cache::Writeback));
        let path = server.dir.path().join("cached");
        let wish = Wish::new(Dialect::Structured);
        server.connect("cached", &wish).write(0, &pattern(4, 0, SIZE));
        let mut client = server.connect("cached", &wish);
        for cookie in 0..8 {
            client.send(READ, 0, cookie, 0, SIZE, &[]); // the socket holds less than this
        }
        let first = client.reply(0, SIZE);
        assert!(first.bytes(0, SIZE) == pattern(4, 0, SIZE));
        std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(MIB)).expect("cut short");
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest); // of whatever was under way
        let whole = 28 + SIZE as usize;
        assert!(rest.len() < 7 * whole, "not everything that was promised can have come");
        let mut other = server.connect("cached", &wish);
        assert!(other.read(0, LARGE) == pattern(4, 0, LARGE), "the daemon lives, and so does what is left");
        assert_eq!(other.call(READ, 0, 2 * MIB, LARGE, &[]).error, EIO);
    });
}

#[test]
fn zeros_that_take_the_place_of_data_are_told_as_holes_at_once() {
    on_every_engine(|server| {
        let bdev: Arc<dyn Bdev> = server.aio("cached", SIZE, 512, Cache::Writeback);
        server.export("cached", bdev);
        let mut client = server.connect("cached", &Wish::new(Dialect::Structured));
        client.write(0, &pattern(6, 0, SIZE));
        for (command, at) in [(TRIM, MIB), (WRITE_ZEROES, 2 * MIB)] {
            assert_eq!(client.call(READ, 0, at, LARGE, &[]).content(), [(at, LARGE, 'd')]);
            assert_eq!(client.call(command, 0, at, LARGE, &[]).error, 0);
            assert_eq!(client.call(READ, 0, at, LARGE, &[]).content(), [(at, LARGE, 'z')]);
            client.write(at, &pattern(7, at, LARGE));
            assert!(client.read(at, LARGE) == pattern(7, at, LARGE));
        }
    });
}
