//! What an export lets in: how many clients, and how many new ones a second; and clients of a bdev that grows.

mod nbd_support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::null::NullBdev;
use ubi_engine::frontend::nbd::export::ExportOptions;

#[test]
fn a_full_export_refuses_go_with_a_reason_and_the_client_may_go_elsewhere() {
    on_every_engine(|server| {
        let full = ExportOptions { max_connections: 2, ..export_options("full", server.malloc(512)) };
        server.listener.add_export(full).expect("export");
        server.export("other", server.malloc(512));
        let wish = Wish::new(Dialect::Structured);
        let one = server.connect("full", &wish);
        let _two = server.connect("full", &wish);
        assert_eq!(Client::try_connect(&server.path(), "full", &wish).err(), Some(ERR_POLICY));
        let mut stream = greeted(&server.path());
        stream.write_all(&3u32.to_be_bytes()).expect("flags");
        let refused = ask(&mut stream, OPT_GO, &go_data("full", &[]));
        assert_eq!((refused.len(), refused[0].0), (1, ERR_POLICY), "nothing is told before the refusal");
        assert!(String::from_utf8_lossy(&refused[0].1).contains("2 connections"), "{refused:?}");
        assert_eq!(ask(&mut stream, OPT_INFO, &go_data("full", &[])).last().map(|reply| reply.0), Some(REP_ACK));
        assert_eq!(ask(&mut stream, OPT_GO, &go_data("other", &[])).last().map(|reply| reply.0), Some(REP_ACK));
        // EXPORT_NAME has no error: the connection ends.
        let mut stream = greeted(&server.path());
        stream.write_all(&[&3u32.to_be_bytes()[..], &option(OPT_EXPORT_NAME, b"full")].concat()).expect("send");
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
        drop(one);
        let start = Instant::now();
        while let Err(refusal) = Client::try_connect(&server.path(), "full", &wish) {
            assert_eq!(refusal, ERR_POLICY);
            assert!(start.elapsed() < Duration::from_secs(20), "a place is free again");
            std::thread::yield_now();
        }
    });
}

#[test]
fn an_export_lets_in_so_many_clients_a_second() {
    on_every_engine(|server| {
        let limited = ExportOptions { max_handshakes_per_s: 3, ..export_options("slow", server.malloc(512)) };
        server.listener.add_export(limited).expect("export");
        let wish = Wish::new(Dialect::Simple);
        let start = Instant::now();
        let outcomes: Vec<_> = (0..40).map(|_| Client::try_connect(&server.path(), "slow", &wish).err()).collect();
        let let_in = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        let most = 3.0 + 3.0 * start.elapsed().as_secs_f64();
        assert!((3..=most.ceil() as usize).contains(&let_in), "{let_in} of at most {most}");
        assert!(outcomes.iter().flatten().all(|&refusal| refusal == ERR_POLICY));
        while Client::try_connect(&server.path(), "slow", &wish).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the next second lets in more");
            std::thread::yield_now();
        }
    });
}

#[test]
fn growth_is_seen_by_new_clients_and_served_to_old_ones() {
    on_every_engine(|server| {
        let bdev = Arc::new(NullBdev::new("n", SIZE / 512, 512).expect("null"));
        server.export("n", Arc::clone(&bdev) as Arc<dyn Bdev>);
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let size = bdev.info().size_bytes();
            let mut old = server.connect("n", &Wish::new(dialect));
            assert_eq!(old.size, size);
            assert_eq!(old.call(WRITE, 0, size, 512, &[1; 512]).error, ENOSPC);
            bdev.resize(Some(2 * size / 512)).expect("growth");
            assert_eq!(old.call(WRITE, 0, size, 512, &[1; 512]).error, 0, "{dialect:?}");
            assert_eq!(old.read(2 * size - 512, 512), vec![0; 512]);
            assert_eq!(old.call(READ, 0, 2 * size, 512, &[]).error, EINVAL);
            assert_eq!(server.connect("n", &Wish::new(dialect)).size, 2 * size);
        }
    });
}
