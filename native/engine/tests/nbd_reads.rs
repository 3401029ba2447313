//! How reads are answered: holes, one chunk where the client wants one, and where exactly they failed. And zeros that
//! have to be fast. On a real socket, on both I/O engines.

mod nbd_support;

use std::io::Write;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::aio::Cache;
use ubi_engine::bdev::null::NullBdev;

const CHUNKED: [Dialect; 2] = [Dialect::Structured, Dialect::Extended];

#[test]
fn zeros_leave_as_holes_and_data_as_data() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        server.export("direct", server.aio("direct", SIZE, 512, Cache::None));
        server.export("cached", server.aio("cached", SIZE, 4096, Cache::Writeback));
        for export in ["m", "direct", "cached"] {
            for dialect in CHUNKED {
                let mut client = server.connect(export, &Wish::new(dialect));
                client.write(MIB, &[7; 4096]);
                for length in [4096, 65536, MIB] {
                    let hole = client.call(READ, 0, 0, length, &[]);
                    assert_eq!(hole.content(), [(0, length, 'z')], "{export} {dialect:?}");
                }
                let mixed = client.call(READ, 0, MIB - 128 * KIB, 256 * KIB, &[]);
                assert!(mixed.bytes(MIB - 128 * KIB, 256 * KIB) == mixed_bytes());
                if export != "cached" {
                    let expected = [(MIB - 128 * KIB, 128 * KIB, 'z'), (MIB, 4096, 'd'), (MIB + 4096, 124 * KIB, 'z')];
                    assert_eq!(mixed.content(), expected, "{export} {dialect:?}");
                } // what is sent from the page cache is not looked into
                let single = client.call(READ, DF, MIB - 128 * KIB, 256 * KIB, &[]);
                assert_eq!((single.content_chunks, single.holes.len()), (1, 0), "DF: one chunk, and not of zeros");
                assert!(single.bytes(MIB - 128 * KIB, 256 * KIB) == mixed_bytes());
                assert_eq!(client.call(READ, DF, 0, MIB, &[]).content_chunks, 1);
            }
            let mut simple = server.connect(export, &Wish::new(Dialect::Simple));
            assert!(simple.read(MIB - 128 * KIB, 256 * KIB) == mixed_bytes(), "simple replies have no holes");
        }
    });
}

fn mixed_bytes() -> Vec<u8> {
    let mut bytes = vec![0; 256 << 10];
    bytes[128 << 10..][..4096].fill(7);
    bytes
}

#[test]
fn an_images_holes_are_holes_before_and_after_they_were_fetched() {
    on_every_engine(|server| {
        let (bdev, content) = server.ubi(512);
        server.export("ubi", bdev);
        for dialect in CHUNKED {
            let mut client = server.connect("ubi", &Wish::new(dialect));
            for _ in 0..3 {
                let read = client.call(READ, 0, 0, STRIPE, &[]);
                assert!(read.bytes(0, STRIPE) == content[..STRIPE as usize]);
                let hole = client.call(READ, 0, STRIPE, STRIPE, &[]);
                assert_eq!(hole.content(), [(STRIPE, STRIPE, 'z')]);
            }
        }
    });
}

#[test]
fn a_failed_part_is_told_with_its_offset_and_the_rest_arrives() {
    on_every_engine(|server| {
        let (bdev, content) = server.ubi(512);
        server.export("ubi", bdev);
        let mut client = server.connect("ubi", &Wish::new(Dialect::Structured));
        client.write(2 * STRIPE, &vec![9; STRIPE as usize]);
        assert!(client.read(0, STRIPE) == content[..STRIPE as usize]);
        // From now on the image is not what it was: what is missing cannot be fetched any more.
        let mut image = std::fs::OpenOptions::new().append(true).open(server.image_path()).expect("image");
        image.write_all(b"x").expect("change the image");
        for dialect in CHUNKED {
            let mut client = server.connect("ubi", &Wish::new(dialect));
            let read = client.call(READ, 0, 0, 3 * STRIPE, &[]);
            assert_eq!((read.error, read.error_at), (EIO, Some(STRIPE)), "{dialect:?}");
            assert_eq!(
                read.content(),
                [(0, STRIPE / 2, 'd'), (STRIPE / 2, STRIPE / 2, 'z'), (2 * STRIPE, STRIPE, 'd')]
            );
            assert!(read.data[0].1 == content[..STRIPE as usize / 2] && read.data[1].1 == vec![9; STRIPE as usize]);
            let single = client.call(READ, DF, 0, 3 * STRIPE, &[]);
            assert_eq!((single.error, single.error_at, single.content_chunks), (EIO, Some(STRIPE), 0));
            let nothing = client.call(READ, 0, STRIPE + 512, 512, &[]);
            assert_eq!((nothing.error, nothing.error_at), (EIO, Some(STRIPE + 512)));
            assert_eq!(client.read(2 * STRIPE, 512), vec![9; 512], "the connection lives");
        }
        let mut simple = server.connect("ubi", &Wish::new(Dialect::Simple));
        assert_eq!(simple.call(READ, 0, 0, 3 * STRIPE, &[]).error, EIO);
    });
}

#[test]
fn zeros_are_fast_or_refused_before_anything_changes() {
    const OFFERED: u16 = 1 << 11;
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        server.export("null", std::sync::Arc::new(NullBdev::new("n", SIZE / 512, 512).expect("null")));
        server.export("file", server.aio("file", SIZE, 512, Cache::Writeback));
        server.export_as("readonly", server.malloc(512), true);
        let (bdev, mut content) = server.ubi(512);
        server.export("ubi", bdev);
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            for export in ["m", "null", "file"] {
                let mut client = server.connect(export, &Wish::new(dialect));
                assert_ne!(client.flags & OFFERED, 0);
                client.write(0, &[5; 8192]);
                assert_eq!(client.call(WRITE_ZEROES, FAST_ZERO | NO_HOLE, 0, 4096, &[]).error, 0, "{export}");
                assert_eq!(client.call(WRITE_ZEROES, FAST_ZERO | FUA, 512, SIZE - 512, &[]).error, 0, "{export}");
                assert_eq!(client.read(0, 8192), vec![0; 8192]);
                assert_eq!(client.call(WRITE_ZEROES, FAST_ZERO, 1, 4096, &[]).error, ENOTSUP, "half blocks: {export}");
            }
            assert_eq!(server.connect("readonly", &Wish::new(dialect)).flags & OFFERED, 0);
        }
        let mut client = server.connect("ubi", &Wish::new(Dialect::Structured));
        for (offset, length) in [(512, 512), (0, STRIPE - 512), (STRIPE / 2, STRIPE), (0, 2 * STRIPE - 512)] {
            assert_eq!(
                client.call(WRITE_ZEROES, FAST_ZERO, offset, length, &[]).error,
                ENOTSUP,
                "{length} at {offset}"
            );
        }
        assert!(client.read(0, 2 * STRIPE) == content[..2 * STRIPE as usize], "nothing was changed");
        // Whole stripes, stripes that are here, and what lies past the image.
        for (offset, length) in [(0, 4 * STRIPE), (512, 512), (6 * STRIPE, STRIPE), (IMAGE_BYTES + 512, 512)] {
            assert_eq!(client.call(WRITE_ZEROES, FAST_ZERO, offset, length, &[]).error, 0, "{length} at {offset}");
            content[offset as usize..][..length as usize].fill(0);
        }
        assert!(client.read(0, SIZE) == content);
    });
}
