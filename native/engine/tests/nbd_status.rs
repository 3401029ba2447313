//! BLOCK_STATUS over a real socket, on both I/O engines: what each kind of bdev tells, and what is refused.

mod nbd_support;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::aio::Cache;

const HOLE_AND_ZERO: u64 = 3;
const BASE: Wish = Wish { contexts: &["base:allocation"], ..Wish::new(Dialect::Structured) };
const DEPTH: Wish = Wish { contexts: &["qemu:allocation-depth"], ..Wish::new(Dialect::Structured) };
const FETCH: Wish = Wish { contexts: &["x-ubi:fetch"], ..Wish::new(Dialect::Structured) };
const ALL: Wish =
    Wish { contexts: &["base:allocation", "qemu:allocation-depth", "x-ubi:fetch"], ..Wish::new(Dialect::Structured) };

#[test]
fn a_fresh_overlay_tells_the_images_holes_and_fetches_nothing() {
    on_every_engine(|server| {
        let (volume, _) = server.ubi(512);
        server.export("ubi", volume.clone());
        let half = STRIPE / 2;
        let mut expected = Vec::new();
        for _ in 0..8 {
            // Half a stripe of data, then a hole to the next data; what is past the image is a hole of the base.
            expected.extend([(half, 0), (3 * half, HOLE_AND_ZERO)]);
        }
        expected.last_mut().expect("not empty").0 += SIZE - IMAGE_BYTES;
        assert_eq!(server.connect("ubi", &BASE).status(0, 0, SIZE), expected);
        assert_eq!(server.connect("ubi", &DEPTH).status(0, 0, SIZE), [(IMAGE_BYTES, 2), (SIZE - IMAGE_BYTES, 0)]);
        assert_eq!(server.connect("ubi", &FETCH).status(0, 0, SIZE), [(IMAGE_BYTES, 0), (SIZE - IMAGE_BYTES, 1)]);
        let status = volume.ubi().expect("an overlay").status();
        assert_eq!((status.stripes_present, status.fetched_bytes), (0, 0));
    });
}

#[test]
fn what_was_written_zeroed_and_fetched_shows_in_every_context() {
    on_every_engine(|server| {
        server.export("ubi", server.ubi(4096).0);
        let mut client = server.connect("ubi", &ALL);
        client.write(0, &[1; STRIPE as usize]);
        assert_eq!(client.call(WRITE_ZEROES, 0, STRIPE, STRIPE, &[]).error, 0);
        assert_eq!(client.call(CACHE, 0, 2 * STRIPE, STRIPE, &[]).error, 0);
        client.write(IMAGE_BYTES + STRIPE, &[2; 4096]);
        let replied = client.call(BLOCK_STATUS, 0, 0, 4 * STRIPE, &[]);
        let ids: Vec<u32> = replied.status.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2, 3]);
        // The copy of the third stripe ends in a hole, as the image's does.
        let half = STRIPE / 2;
        assert_eq!(replied.status[0].1, [(STRIPE, 0), (STRIPE, 3), (half, 0), (half + STRIPE, 3)]);
        assert_eq!(replied.status[1].1, [(3 * STRIPE, 1), (STRIPE, 2)]);
        assert_eq!(replied.status[2].1, [(3 * STRIPE, 1), (STRIPE, 0)]);
        let past = client.call(BLOCK_STATUS, 0, IMAGE_BYTES, 3 * STRIPE, &[]);
        assert_eq!(past.status[0].1, [(STRIPE, 3), (4096, 0), (2 * STRIPE - 4096, 3)]);
        assert_eq!(past.status[1].1, [(STRIPE, 0), (4096, 1), (2 * STRIPE - 4096, 0)]);
    });
}

#[test]
fn zeros_are_told_only_where_reads_give_zeros() {
    on_every_engine(|server| {
        let (volume, mut content) = server.ubi(512);
        server.export("ubi", volume);
        let mut client = server.connect("ubi", &BASE);
        for (offset, length) in
            [(3 * 512, 512), (5 * STRIPE - 1024, 4096), (IMAGE_BYTES - 512, 1024), (SIZE - 512, 512)]
        {
            client.write(offset, &vec![7; length]);
            content[offset as usize..][..length].fill(7);
        }
        let mut position = 0;
        for (length, value) in client.status(0, 0, SIZE) {
            let range = position as usize..(position + length) as usize;
            assert!(value == 0 || content[range.clone()].iter().all(|&byte| byte == 0), "{range:?}");
            position += length;
        }
        assert_eq!(position, SIZE);
        assert_eq!(client.read(0, SIZE), content);
    });
}

#[test]
fn a_file_tells_its_holes_and_memory_is_data() {
    on_every_engine(|server| {
        for (name, cache) in [("direct", Cache::None), ("cached", Cache::Writeback)] {
            server.export(name, server.aio(name, SIZE, 4096, cache));
            let mut client = server.connect(name, &BASE);
            assert_eq!(client.status(0, 0, SIZE), [(SIZE, HOLE_AND_ZERO)]);
            client.write(MIB, &[1; 8192]);
            let expected = [(MIB, HOLE_AND_ZERO), (8192, 0), (SIZE - MIB - 8192, HOLE_AND_ZERO)];
            assert_eq!(client.status(0, 0, SIZE), expected);
            assert_eq!(client.status(REQ_ONE, 0, SIZE), expected[..1]);
            assert_eq!(client.status(REQ_ONE, MIB, 4096), [(4096, 0)], "not past the request");
        }
        server.export("memory", server.malloc(512));
        assert_eq!(server.connect("memory", &BASE).status(0, 0, SIZE), [(SIZE, 0)]);
        assert_eq!(server.connect("memory", &FETCH).status(0, 0, SIZE), [(SIZE, 1)]);
    });
}

#[test]
fn requests_for_one_extent_get_one_of_each_context() {
    on_every_engine(|server| {
        server.export("ubi", server.ubi(512).0);
        let mut client = server.connect("ubi", &ALL);
        client.write(512, &[1; 512]);
        let mut offset = 0;
        while offset < SIZE {
            let replied = client.call(BLOCK_STATUS, REQ_ONE, offset, SIZE - offset, &[]);
            assert!(replied.status.iter().all(|(_, extents)| extents.len() == 1 && extents[0].0 <= SIZE - offset));
            offset += replied.status.iter().map(|(_, extents)| extents[0].0).min().expect("three contexts");
        }
    });
}

#[test]
fn what_cannot_be_told_is_refused_and_the_connection_lives() {
    on_every_engine(|server| {
        server.export("ubi", server.ubi(512).0);
        let mut client = server.connect("ubi", &BASE);
        let cases = [
            (0, 0, 0),
            (0, SIZE, 512),
            (0, 0, SIZE + 1),
            (0, SIZE - 512, 1024),
            (0, u64::MAX, 1),
            (0, u64::MAX - 511, 512),
            (0, 512, 0xffff_ffff),
            (0, 0, 0xffff_fe00),
            (REQ_ONE, SIZE, 1),
            (DF, 0, 512),
            (NO_HOLE, 0, 512),
            (FAST_ZERO, 0, 512),
            (PAYLOAD_LEN, 0, 512),
            (1 << 15, 0, 512),
        ];
        for (flags, offset, length) in cases {
            let replied = client.call(BLOCK_STATUS, flags, offset, length, &[]);
            assert_eq!(replied.error, EINVAL, "{flags} {offset} {length}");
        }
        assert_eq!(client.status(FUA, 0, 512), [(512, 0)]);
        for dialect in [Dialect::Simple, Dialect::Structured] {
            let mut without = server.connect("ubi", &Wish::new(dialect));
            assert_eq!(without.call(BLOCK_STATUS, 0, 0, 512, &[]).error, EINVAL);
            assert_eq!(without.read(SIZE - 512, 512), vec![0; 512]);
        }
    });
}

/// CVE-2025-47711 and -47712: requests of almost 4 GiB, aligned and not, on an export that is larger.
#[test]
fn lengths_of_almost_four_gib_stay_inside_the_request() {
    on_every_engine(|server| {
        server.export("large", server.aio("large", 16 << 30, 512, Cache::Writeback));
        let mut client = server.connect("large", &BASE);
        client.write(8 << 30, &[1; 512]);
        for (offset, length) in
            [(0, 0xffff_ffff), (0, 0xffff_fe00), (1, 0xffff_ffff), (513, 0xffff_fe01), ((4 << 30) + 1, 0xffff_ffff)]
        {
            for flags in [0, REQ_ONE] {
                assert_eq!(client.status(flags, offset, length), [(length, HOLE_AND_ZERO)], "{length} at {offset}");
            }
        }
        let across = client.status(0, (8 << 30) - 100, 0xffff_ffff);
        assert_eq!(across.iter().map(|extent| extent.0).sum::<u64>(), 0xffff_ffff);
        assert_eq!(across[0], (100, HOLE_AND_ZERO));
        assert_eq!(across[1].1, 0);
    });
}
