//! Extended headers over a real socket, on both I/O engines.

mod nbd_support;

use std::io::Write;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::aio::Cache;

const EXTENDED: Wish = Wish::new(Dialect::Extended);
const ALL: Wish =
    Wish { contexts: &["base:allocation", "qemu:allocation-depth", "x-ubi:fetch"], ..Wish::new(Dialect::Extended) };

#[test]
fn every_command_works_and_is_answered_by_chunks() {
    on_every_engine(|server| {
        let (volume, mut content) = server.ubi(512);
        server.export("ubi", volume);
        let mut client = server.connect("ubi", &EXTENDED);
        assert_eq!(client.flags & 1 << 12, 1 << 12, "BLOCK_STATUS takes a payload");
        assert_eq!(client.read(0, SIZE), content);
        for (offset, length) in [(512, 512), (4096, 4096), (STRIPE, 200_704), (MIB, 2 * MIB)] {
            let data = vec![offset as u8 | 5; length as usize];
            assert_eq!(client.call(WRITE, FUA, offset, length, &data).error, 0);
            content[offset as usize..][..length as usize].copy_from_slice(&data);
        }
        assert_eq!(client.call(WRITE_ZEROES, 0, MIB, MIB, &[]).error, 0);
        content[MIB as usize..2 * MIB as usize].fill(0);
        for command in [FLUSH, CACHE] {
            assert_eq!(client.call(command, 0, 0, if command == CACHE { STRIPE } else { 0 }, &[]).error, 0);
        }
        assert_eq!(client.call(TRIM, FUA, SIZE - STRIPE, STRIPE, &[]).error, 0);
        assert_eq!(client.call(READ, DF, 0, SIZE, &[]).bytes(0, SIZE), content);
        assert_eq!(client.call(READ, 0, 0, 0, &[]).content_chunks, 0, "a read of nothing has no data");
    });
}

#[test]
fn lengths_beyond_32_bits_are_one_request() {
    on_every_engine(|server| {
        let size = 16 << 30;
        server.export("large", server.aio("large", size, 4096, Cache::Writeback));
        let mut client = server.connect("large", &Wish { contexts: &["base:allocation"], ..EXTENDED });
        client.write(10 << 30, &[1; 4096]);
        let expected = [(10 << 30, 3), (4096, 0), ((6 << 30) - 4096, 3)];
        assert_eq!(client.status(0, 0, size), expected);
        assert_eq!(client.status(REQ_ONE, 0, size), expected[..1]);
        assert_eq!(client.call(WRITE_ZEROES, 0, 0, size, &[]).error, 0);
        assert_eq!(client.status(0, 0, size), [(size, 3)]);
        assert_eq!(client.call(TRIM, 0, 4096, size - 4096, &[]).error, 0);
        assert_eq!(client.read(10 << 30, 4096), vec![0; 4096]);
    });
}

#[test]
fn a_payload_chooses_among_the_contexts() {
    on_every_engine(|server| {
        server.export("ubi", server.ubi(512).0);
        let mut client = server.connect("ubi", &ALL);
        let filter = |length: u64, ids: &[u32]| {
            [&length.to_be_bytes()[..], &ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<_>>()].concat()
        };
        for ids in [&[1][..], &[3], &[1, 2], &[1, 2, 3]] {
            let payload = filter(SIZE, ids);
            let replied = client.call(BLOCK_STATUS, PAYLOAD_LEN, 0, payload.len() as u64, &payload);
            assert_eq!(replied.status.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
            assert!(replied.status.iter().all(|(_, list)| list.iter().map(|extent| extent.0).sum::<u64>() == SIZE));
        }
        let wrong = [
            filter(SIZE, &[]),
            filter(SIZE, &[4]),
            filter(SIZE, &[1, 1]),
            filter(SIZE, &[1, 2, 3, 1]),
            filter(SIZE + 1, &[1]),
            filter(0, &[1]),
            filter(u64::MAX, &[1]),
            filter(SIZE, &[1])[..11].to_vec(),
            vec![0; 3],
            vec![0; 100_000],
        ];
        for payload in wrong {
            let replied = client.call(BLOCK_STATUS, PAYLOAD_LEN, 0, payload.len() as u64, &payload);
            assert_eq!((replied.error, replied.status.len()), (EINVAL, 0), "{} bytes", payload.len());
        }
        assert_eq!(client.call(BLOCK_STATUS, 0, 0, SIZE, &[]).status.len(), 3, "the connection lives");
    });
}

#[test]
fn payloads_that_nobody_wants_are_read_past() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        let mut client = server.connect("m", &EXTENDED);
        for command in [READ, DISC + 90, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
            for length in [1, 512, 300_000] {
                let replied = client.call(command, PAYLOAD_LEN, 0, length, &vec![0x21; length as usize]);
                assert_eq!(replied.error, EINVAL, "command {command} with {length} bytes");
            }
        }
        let mut without_flag = client.request(WRITE, 0, 5, 0, 512);
        without_flag.extend([6; 512]);
        client.stream.write_all(&without_flag).expect("send");
        assert_eq!(client.reply(0, 0).error, 0, "a write has a payload, whatever its flags");
        assert_eq!(client.read(0, 512), vec![6; 512]);
        for (command, offset, length, error) in [
            (READ, 0, 1 << 40, EINVAL),
            (READ, SIZE, 1, EINVAL),
            (WRITE_ZEROES, 512, u64::MAX, ENOSPC),
            (WRITE_ZEROES, 0, 1 << 63, ENOSPC),
            (TRIM, u64::MAX, u64::MAX, EINVAL),
            (CACHE, 0, SIZE + 512, EINVAL),
        ] {
            assert_eq!(client.call(command, 0, offset, length, &[]).error, error, "{command} {offset} {length}");
        }
        assert_eq!(client.read(512, 512), vec![0; 512]);
    });
}

#[test]
fn what_is_out_of_step_or_beyond_every_limit_ends_the_connection() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        for command in [READ, WRITE, BLOCK_STATUS] {
            let mut client = server.connect("m", &EXTENDED);
            let header = client.request(command, PAYLOAD_LEN, 5, 0, (64 << 20) + 512);
            client.stream.write_all(&header).expect("send");
            assert_eq!(client.reply(0, 0).error, EINVAL);
            assert!(client.is_closed());
        }
        let mut client = server.connect("m", &EXTENDED);
        let header = client.request(DISC, PAYLOAD_LEN, 5, 0, 1 << 20);
        client.stream.write_all(&header).expect("send");
        assert!(client.is_closed(), "DISC has no reply, whatever it carries");
        let mut client = server.connect("m", &EXTENDED);
        let mut old = 0x2560_9513u32.to_be_bytes().to_vec();
        old.resize(32, 0);
        client.stream.write_all(&old).expect("send");
        assert!(client.is_closed(), "compact requests are forbidden");
    });
}
