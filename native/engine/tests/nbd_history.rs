//! What went wrong in other NBD servers, one test for each kind that applies here; docs/nbd.md has the table.

mod nbd_support;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::aio::Cache;
use ubi_engine::bdev::null::NullBdev;

const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];

/// nbdkit 1.44.1: zeros were cut to 64 MiB and old data shone through.
#[test]
fn zeros_beyond_the_largest_payload_are_zeros_to_their_end() {
    on_every_engine(|server| {
        let size = 160 * MIB;
        server.export("file", server.aio("large", size, 512, Cache::Writeback));
        let file = std::fs::File::options().write(true).open(server.dir.path().join("large")).expect("base");
        for dialect in DIALECTS {
            for at in (0..size).step_by(8 << 20) {
                file.write_all_at(&[9; 4096], at).expect("old data");
            }
            let mut client = server.connect("file", &Wish::new(dialect));
            assert_eq!(client.call(WRITE_ZEROES, 0, MIB, 128 * MIB, &[]).error, 0);
            for at in (0..size).step_by(8 << 20) {
                let expected = if (MIB..129 * MIB).contains(&at) { 0 } else { 9 };
                assert_eq!(client.read(at, 4096), vec![expected; 4096], "{dialect:?} at {at}");
            }
        }
    });
}

/// nbdkit 1.32.5 and 1.42.3 aborted on FAST_ZERO that was not offered: every flag on every command, offered or not.
#[test]
fn every_flag_on_every_command_is_carried_out_or_refused_and_the_connection_lives() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        server.export_as("readonly", server.malloc(512), true);
        let mut cases = 0;
        for dialect in DIALECTS {
            for export in ["m", "readonly"] {
                let mut client = server.connect(export, &Wish::new(dialect));
                for command in (READ..=10).filter(|&command| command != DISC) {
                    for bit in 0..16 {
                        let flags = 1 << bit;
                        if dialect == Dialect::Extended && flags == PAYLOAD_LEN && command != WRITE {
                            continue; // a payload would have to follow
                        }
                        let payload: &[u8] = if command == WRITE { &[0; 512] } else { &[] };
                        let replied = client.call(command, flags, 0, 512, payload);
                        assert!([0, EPERM, EINVAL].contains(&replied.error), "{dialect:?} {command} {flags:#x}");
                        assert!(replied.error != 0 || flags & 0x3f != 0, "an unknown flag is refused");
                        cases += 1;
                    }
                }
                assert_eq!(client.read(0, 512), vec![0; 512]);
            }
        }
        assert!(cases > 900, "{cases} cases");
    });
}

/// nbd-server: CVE-2013-7441 (an unknown export in a loop); qemu-nbd: EXPORT_NAME and away.
#[test]
fn failed_and_abandoned_handshakes_in_a_loop_harm_nobody() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        for turn in 0..200 {
            let name: &[u8] = if turn % 2 == 0 { b"m" } else { b"absent" };
            let mut stream = greeted(&server.path());
            stream.write_all(&[&3u32.to_be_bytes()[..], &option(OPT_EXPORT_NAME, name)].concat()).expect("send");
        }
        assert_eq!(server.connect("m", &Wish::new(Dialect::Structured)).read(0, 512), vec![0; 512]);
    });
}

/// CVE-2019-14851: options in odd orders, here between two exports with contexts of each.
#[test]
fn contexts_are_those_of_the_export_that_was_entered() {
    on_every_engine(|server| {
        server.export("a", server.malloc(512));
        server.export("b", server.malloc(512));
        let mut stream = greeted(&server.path());
        stream.write_all(&3u32.to_be_bytes()).expect("flags");
        assert_eq!(ask(&mut stream, OPT_STRUCTURED_REPLY, b"")[0].0, REP_ACK);
        assert_eq!(ask(&mut stream, OPT_SET_META_CONTEXT, &meta_data("a", &["base:allocation"])).len(), 2);
        assert_eq!(ask(&mut stream, OPT_INFO, &go_data("a", &[])).last().map(|reply| reply.0), Some(REP_ACK));
        assert_eq!(ask(&mut stream, OPT_LIST, b"").len(), 3);
        assert_eq!(ask(&mut stream, OPT_GO, &go_data("b", &[])).last().map(|reply| reply.0), Some(REP_ACK));
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        stream.write_all(&request).expect("block status");
        let mut reply = [0; 24];
        std::io::Read::read_exact(&mut stream, &mut reply).expect("a reply");
        assert_eq!((&reply[6..8], &reply[20..24]), (&[0x80, 1][..], &EINVAL.to_be_bytes()[..]), "no context of b");
    });
}

/// nbd-server 2025: copy-on-write reads of several blocks, and at offsets that are not 0, gave other places' bytes.
#[test]
fn reads_over_many_stripes_in_every_state_give_their_own_bytes() {
    on_every_engine(|server| {
        let (bdev, mut content) = server.ubi(512);
        server.export("ubi", bdev);
        let mut client = server.connect("ubi", &Wish::new(Dialect::Structured));
        for stripe in [1, 2, 5, 9] {
            let at = stripe * STRIPE + 512 * stripe;
            client.write(at, &[stripe as u8; 1024]);
            content[at as usize..][..1024].fill(stripe as u8);
        }
        for offset in [512, STRIPE - 512, STRIPE + 4096, 3 * STRIPE + 1024, 8 * STRIPE, IMAGE_BYTES - 512] {
            for length in [512, 4096, STRIPE, 3 * STRIPE + 512, 7 * STRIPE] {
                let got = client.read(offset, length);
                assert!(got == content[offset as usize..][..length as usize], "{length} at {offset}");
            }
        }
    });
}

/// CVE-2019-14850, -14851 and others: what a client costs before it is let in.
#[test]
fn half_open_clients_take_no_place_of_an_export() {
    on_every_engine(|server| {
        let one = ubi_engine::frontend::nbd::export::ExportOptions {
            max_connections: 1,
            ..export_options("one", Arc::new(NullBdev::new("n", 8, 512).expect("null")))
        };
        server.listener.add_export(one).expect("export");
        let _half: Vec<_> = (0..50)
            .map(|_| {
                let mut stream = greeted(&server.path());
                stream.write_all(&3u32.to_be_bytes()).expect("flags");
                assert_eq!(
                    ask(&mut stream, OPT_INFO, &go_data("one", &[3])).last().map(|reply| reply.0),
                    Some(REP_ACK)
                );
                stream
            })
            .collect();
        assert_eq!(server.connect("one", &Wish::new(Dialect::Simple)).size, 4096);
    });
}
