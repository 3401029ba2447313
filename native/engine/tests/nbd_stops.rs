//! Ends of every kind: exports that go while clients come, leave, say nothing or take nothing; streams that fall out of
//! step; clients that take their answers slowly. Both I/O engines.

mod nbd_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::events::Events;
use ubi_engine::frontend::nbd::listener::ListenOptions;

/// What a client does before it leaves.
const STAGES: usize = 9;

/// Connect, come as far as `stage`, and leave without a word. Nothing that happens to this client counts.
fn come_and_go(path: &Path, stage: usize) {
    let Ok(mut stream) = UnixStream::connect(path) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let go = option(OPT_GO, &go_data("m", &[]));
    let request = [&0x2560_9513u32.to_be_bytes()[..], &[0; 8], &[0; 8], &[0, 0x40, 0, 0], &[0; 4]].concat();
    let words = [
        Vec::new(),
        vec![0, 0],
        3u32.to_be_bytes().to_vec(),
        [&3u32.to_be_bytes()[..], &go[..10]].concat(),
        [&3u32.to_be_bytes()[..], &option(OPT_EXPORT_NAME, b"m")].concat(),
        [&3u32.to_be_bytes()[..], &option(OPT_EXPORT_NAME, b"absent")].concat(),
        [&3u32.to_be_bytes()[..], &go].concat(),
        [&3u32.to_be_bytes()[..], &go, &request.repeat(20)].concat(),
        [&3u32.to_be_bytes()[..], &option(OPT_LIST, b"").repeat(100)].concat(),
    ];
    let _ = stream.write_all(&words[stage % STAGES]);
    if stage.is_multiple_of(2) {
        let _ = stream.read(&mut [0; 64]);
    }
}

/// CVE-2024-7409, and qemu's crash on EXPORT_NAME and close: clients connect and leave while their export goes and comes.
#[test]
fn exports_and_listeners_go_while_clients_come_and_leave() {
    for io_engine in engines() {
        let options =
            EngineOptions { cpus: Vec::new(), reactors: 2, io_engine: Some(io_engine), memory_budget_bytes: 64 << 20 };
        let engine = Engine::start(&options).expect("engine");
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, bdev) = (dir.path().join("s"), Server::start(io_engine).malloc(512));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let (path, is_over) = (&path, &is_over);
                scope.spawn(move || {
                    for stage in worker.. {
                        come_and_go(path, stage);
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            let ends = Instant::now() + Duration::from_millis(1500);
            let mut rounds = 0;
            while Instant::now() < ends || rounds < 10 {
                rounds += 1;
                let listener = engine.listen_nbd_unix(&path, ListenOptions::default()).expect("listen");
                listener.add_export(export_options("m", bdev.clone())).expect("export");
                listener.open().expect("open");
                std::thread::sleep(Duration::from_millis(rounds % 7));
                let half = UnixStream::connect(&path).expect("connect");
                let start = Instant::now();
                if rounds % 2 == 0 {
                    listener.remove_export("m").expect("remove");
                    listener.add_export(export_options("m", bdev.clone())).expect("again");
                }
                listener.close();
                assert!(start.elapsed() < Duration::from_secs(15), "an end is bounded");
                drop(half);
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn an_export_that_goes_answers_what_is_in_flight_and_waits_for_nobody_for_long() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        let wish = Wish::new(Dialect::Structured);
        let mut idle = server.connect("m", &wish);
        let mut busy = server.connect("m", &wish);
        let mut greedy = server.connect("m", &wish);
        for cookie in 0..64 {
            busy.send(WRITE, FUA, cookie, cookie * 512, 512, &[7; 512]);
            greedy.send(READ, DF, cookie, 0, 2 * MIB, &[]); // and takes nothing
        }
        std::thread::sleep(Duration::from_millis(50)); // what was sent is in flight or done, whichever
        let start = Instant::now();
        server.listener.remove_export("m").expect("remove");
        assert!(start.elapsed() < Duration::from_secs(12), "took {:?}", start.elapsed());
        let mut answers = Vec::new();
        let _ = busy.stream.read_to_end(&mut answers);
        assert_eq!(answers.len() % 16, 0, "whole replies alone");
        assert!(idle.is_closed());
        server.export("m", server.malloc(512));
        assert_eq!(server.connect("m", &wish).read(0, 512), vec![0; 512]);
    });
}

/// Linux clients were seen to send a header again in the middle of a payload after an interrupted send.
#[test]
fn a_stream_out_of_step_ends_alone_and_is_told_of() {
    for io_engine in engines() {
        let options =
            EngineOptions { cpus: Vec::new(), reactors: 1, io_engine: Some(io_engine), memory_budget_bytes: 64 << 20 };
        let engine = Engine::start(&options).expect("engine");
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        let events = Events::new().expect("events");
        let listen = ListenOptions { tls: None, events: Some(events.clone()), ..ListenOptions::default() };
        let listener = engine.listen_nbd_unix(&path, listen).expect("listen");
        let bdev = Server::start(io_engine).malloc(512);
        listener.add_export(export_options("m", bdev)).expect("export");
        listener.open().expect("open");
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut other = Client::connect(&path, "m", &Wish::new(dialect));
            let mut confused = Client::connect(&path, "m", &Wish::new(dialect));
            let header =
                confused.request(WRITE, if dialect == Dialect::Extended { PAYLOAD_LEN } else { 0 }, 5, 0, 4096);
            confused.stream.write_all(&header).expect("send");
            confused.stream.write_all(&[1; 1000]).expect("part of the payload");
            confused.stream.write_all(&header).expect("the header again");
            confused.stream.write_all(&[1; 4096]).expect("the payload again");
            let first = confused.reply(0, 0);
            assert_eq!((first.cookie, first.error), (5, 0), "what looks like a request is one");
            assert!(confused.is_closed(), "what follows does not");
            assert_eq!(other.call(FLUSH, 0, 0, 0, &[]).error, 0, "nobody else notices");
            let told = events.drain();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].object == "m" && told[0].message.contains("out of step"), "{told:?}");
        }
        drop(listener);
    }
}

#[test]
fn answers_arrive_whole_however_slowly_they_are_taken() {
    on_every_engine(|server| {
        let bdev = server.malloc(512);
        server.export("m", bdev);
        let mut writer = server.connect("m", &Wish::new(Dialect::Simple));
        let data: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8 + 1).collect();
        writer.write(0, &data);
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut client = server.connect("m", &Wish::new(dialect));
            let lengths: Vec<u64> = (0..40).map(|index| 512 << (index % 12)).collect();
            for (cookie, &length) in lengths.iter().enumerate() {
                client.send(READ, 0, cookie as u64, 512, length, &[]);
            }
            let mut stream = client.stream.try_clone().expect("clone");
            let slow = std::thread::spawn(move || {
                let (mut bytes, mut piece) = (Vec::new(), vec![0; 70_001]);
                for turn in 0usize.. {
                    let size = 1 + turn * 7919 % piece.len();
                    match stream.read(&mut piece[..size]) {
                        Ok(0) | Err(_) => return bytes,
                        Ok(count) => bytes.extend_from_slice(&piece[..count]),
                    }
                    if turn.is_multiple_of(8) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                bytes
            });
            client.send(DISC, 0, 99, 0, 0, &[]);
            let bytes = slow.join().expect("reader");
            let payload: u64 = lengths.iter().sum();
            let per_reply = match dialect {
                Dialect::Simple => 16,
                Dialect::Structured => 28,
                Dialect::Extended => 40,
            };
            assert_eq!(bytes.len() as u64, payload + 40 * per_reply, "{dialect:?}");
        }
    });
}

#[test]
fn two_hundred_clients_at_once_are_served_and_leave() {
    on_every_engine(|server| {
        server.export("m", server.malloc(512));
        let wish = Wish::new(Dialect::Extended);
        let mut clients: Vec<Client> = (0..200).map(|_| server.connect("m", &wish)).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            client.write(index as u64 * 512, &[index as u8; 512]);
        }
        for (index, client) in clients.iter_mut().enumerate().rev() {
            assert_eq!(client.read(index as u64 * 512, 512), vec![index as u8; 512]);
        }
        drop(clients);
        let start = Instant::now();
        while server.listener.exports()[0].1 > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "all have left");
            std::thread::yield_now();
        }
    });
}

/// A handshake has ten seconds in all, however often a byte of it comes.
#[test]
fn a_handshake_that_trickles_in_is_cut_off_and_holds_up_nobody() {
    let trickle = |io_engine| {
        let server = Server::start(io_engine);
        server.export("m", server.malloc(512));
        let start = Instant::now();
        let mut slow = greeted(&server.path());
        slow.set_read_timeout(Some(Duration::from_millis(250))).expect("timeout");
        let words = [3u32.to_be_bytes().to_vec(), option(OPT_LIST, b"").repeat(50)].concat();
        for byte in words {
            // The answer to LIST is taken or not; the end of the stream is what counts.
            if slow.write_all(&[byte]).is_err() || matches!(slow.read(&mut [0; 256]), Ok(0)) {
                let took = start.elapsed();
                assert!((9..16).contains(&took.as_secs()), "cut off after {took:?}");
                return;
            }
            assert_eq!(server.connect("m", &Wish::new(Dialect::Simple)).size, SIZE);
        }
        panic!("never cut off");
    };
    std::thread::scope(|scope| {
        for io_engine in engines() {
            scope.spawn(move || trickle(io_engine));
        }
    });
}
