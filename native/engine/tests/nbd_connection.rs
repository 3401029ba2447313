//! NBD connections over a real socket, on both I/O engines, driven by a client that is written from the protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::aio::{AioBdev, AioOptions, Cache};
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::frontend::nbd::export::ExportOptions;
use ubi_engine::frontend::nbd::listener::{ListenOptions, NbdListener};
use ubi_engine::reactor::IoEngine;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const FUA: u16 = 1;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

const SIZE: u64 = 4 << 20;

/// A client in transmission, with simple replies.
struct Client {
    stream: UnixStream,
}

impl Client {
    fn connect(path: &Path, export: &str) -> Self {
        let mut stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut greeting = [0u8; 18];
        stream.read_exact(&mut greeting).expect("greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes()); // NBD_OPT_EXPORT_NAME
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.bytes());
        stream.write_all(&hello).expect("hello");
        let mut answer = [0u8; 10];
        stream.read_exact(&mut answer).expect("the export's size and flags");
        Self { stream }
    }

    fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request).expect("send");
    }

    /// The next reply's (cookie, error).
    fn reply(&mut self) -> (u64, u32) {
        let mut reply = [0u8; 16];
        self.stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        let word = |range: std::ops::Range<usize>| u64::from_be_bytes(reply[range].try_into().expect("eight bytes"));
        (word(8..16), u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")))
    }

    fn call(&mut self, command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) -> u32 {
        self.send(command, flags, 77, offset, length, payload);
        let (cookie, error) = self.reply();
        assert_eq!(cookie, 77);
        error
    }

    fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.call(READ, 0, offset, length, &[]), 0);
        self.payload(length)
    }

    fn payload(&mut self, length: u32) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).expect("the payload");
        data
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0u8; 1]), Ok(0) | Err(_))
    }
}

struct Server {
    dir: tempfile::TempDir,
    listener: NbdListener,
    _engine: Engine,
}

impl Server {
    fn client(&self, export: &str) -> Client {
        Client::connect(&self.dir.path().join("s"), export)
    }

    fn export(&self, name: &str, bdev: Arc<dyn Bdev>, readonly: bool) {
        let name = name.to_owned();
        let options = ExportOptions {
            name,
            bdev,
            readonly,
            default: false,
            max_connections: 2,
            max_handshakes_per_s: 0,
            description: String::new(),
        };
        self.listener.add_export(options).expect("export");
    }

    fn aio(&self, name: &str, cache: Cache) -> Arc<dyn Bdev> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, vec![0u8; SIZE as usize]).expect("base");
        let options = AioOptions {
            name: name.into(),
            path,
            block_size: Some(512),
            readonly: false,
            cache,
            fallocate: true,
            lock_wait: Duration::ZERO,
        };
        Arc::new(AioBdev::open(&options).expect("aio"))
    }
}

/// Both engines, or those that UBI_TEST_IO_ENGINES names where the kernel refuses io_uring.
fn engines() -> Vec<IoEngine> {
    let named = std::env::var("UBI_TEST_IO_ENGINES").unwrap_or_else(|_| "io_uring threads".into());
    let all = [IoEngine::IoUring, IoEngine::Threads];
    let engines: Vec<IoEngine> =
        all.into_iter().filter(|engine| named.split(' ').any(|name| name == engine.as_str())).collect();
    assert!(!engines.is_empty(), "UBI_TEST_IO_ENGINES={named:?} names no engine");
    engines
}

/// Run `test` with each engine, over a malloc bdev and both kinds of file.
fn on_every_engine(test: impl Fn(&Server, &str)) {
    for io_engine in engines() {
        let options =
            EngineOptions { cpus: Vec::new(), reactors: 2, io_engine: Some(io_engine), memory_budget_bytes: 64 << 20 };
        let engine = Engine::start(&options).expect("engine");
        let dir = tempfile::tempdir().expect("tempdir");
        let listener = engine.listen_nbd_unix(&dir.path().join("s"), ListenOptions::default()).expect("listen");
        listener.open().expect("open");
        let server = Server { dir, listener, _engine: engine };
        server.export("malloc", Arc::new(MallocBdev::new("m", SIZE / 512, 512).expect("malloc")), false);
        server.export("direct", server.aio("direct", Cache::None), false);
        server.export("cached", server.aio("cached", Cache::Writeback), false);
        for export in ["malloc", "direct", "cached"] {
            test(&server, export);
        }
    }
}

#[test]
fn what_one_connection_writes_the_other_reads() {
    on_every_engine(|server, export| {
        let (mut one, mut two) = (server.client(export), server.client(export));
        for (offset, length) in [(512u64, 512u32), (4096, 4096), (1 << 20, 200_704), (2 << 20, 1 << 20)] {
            let data: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            assert_eq!(one.call(WRITE, FUA, offset, length, &data), 0, "{export}");
            assert_eq!(two.read(offset, length), data, "{export} at {offset}");
        }
        assert_eq!(one.call(FLUSH, 0, 0, 0, &[]), 0);
        assert_eq!(one.call(TRIM, 0, 4096, 4096, &[]), 0);
        assert_eq!(one.call(WRITE_ZEROES, 0, 2 << 20, 1 << 20, &[]), 0);
        assert_eq!(two.read(4096, 4096), vec![0; 4096]);
        assert_eq!(two.read(2 << 20, 1 << 20), vec![0; 1 << 20]);
    });
}

#[test]
fn wrong_requests_get_their_error_and_the_connection_lives() {
    on_every_engine(|server, export| {
        let mut client = server.client(export);
        assert_eq!(client.call(READ, 0, SIZE, 512, &[]), EINVAL);
        assert_eq!(client.call(READ, 0, u64::MAX - 511, 512, &[]), EINVAL);
        assert_eq!(client.call(WRITE, 0, SIZE - 512, 1024, &[1; 1024]), ENOSPC);
        assert_eq!(client.call(WRITE_ZEROES, 0, SIZE, 512, &[]), ENOSPC);
        assert_eq!(client.call(TRIM, 0, SIZE, 512, &[]), EINVAL);
        assert_eq!(client.call(READ, 0, SIZE - 1, 2, &[]), EINVAL, "unaligned");
        assert_eq!(client.call(WRITE, 0, SIZE - 100, 512, &[1; 512]), ENOSPC, "unaligned");
        assert_eq!(client.call(WRITE, 0, u64::MAX - 100, 512, &[1; 512]), ENOSPC, "unaligned");
        assert_eq!(client.call(WRITE, 1 << 9, 0, 512, &[1; 512]), EINVAL, "unknown flag");
        assert_eq!(client.call(WRITE_ZEROES, 1 << 5, 0, 512, &[]), EINVAL, "PAYLOAD_LEN was not agreed on");
        assert_eq!(client.call(99, 0, 0, 512, &[]), EINVAL, "unknown command");
        assert_eq!(client.call(BLOCK_STATUS, 0, 0, 512, &[]), EINVAL, "no context");
        assert_eq!(client.call(READ, 0, 0, u32::MAX - 511, &[]), EINVAL, "more than 64 MiB");
        let large = vec![1; 3 << 20];
        assert_eq!(client.call(WRITE, 0, SIZE - 512, 3 << 20, &large), ENOSPC, "its payload is read past");
        assert_eq!(client.read(0, 512), vec![0; 512], "nothing of that was written");
    });
}

#[test]
fn a_payload_beyond_every_limit_ends_the_connection_with_an_error() {
    on_every_engine(|server, export| {
        let mut client = server.client(export);
        client.send(WRITE, 0, 5, 0, (64 << 20) + 512, &[]);
        assert_eq!(client.reply(), (5, EINVAL));
        assert!(client.is_closed());
        assert_eq!(server.client(export).read(0, 512), vec![0; 512], "others are not touched");
    });
}

#[test]
fn requests_in_flight_at_disc_are_answered() {
    on_every_engine(|server, export| {
        let mut client = server.client(export);
        for index in 0..64u64 {
            client.send(WRITE, FUA, index, index * 4096, 4096, &[index as u8 + 1; 4096]);
        }
        client.send(DISC, 0, 0, 0, 0, &[]);
        let mut seen: Vec<u64> =
            (0..64).map(|_| client.reply()).map(|(cookie, error)| cookie + u64::from(error)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..64).collect::<Vec<u64>>());
        assert!(client.is_closed());
    });
}

#[test]
fn removing_an_export_answers_what_is_in_flight_and_then_closes() {
    on_every_engine(|server, export| {
        let mut client = server.client(export);
        let mut idle = server.client(export);
        assert_eq!(client.call(WRITE, 0, 0, 512, &[9; 512]), 0);
        server.listener.remove_export(export).expect("remove");
        assert!(client.is_closed());
        assert!(idle.is_closed());
        assert!(!server.listener.exports().iter().any(|(name, _)| name == export));
    });
}

#[test]
fn a_read_only_export_refuses_what_writes() {
    on_every_engine(|server, export| {
        let name = format!("{export}-ro");
        server.export(&name, Arc::new(MallocBdev::new("ro", 64, 512).expect("malloc")), true);
        let mut client = server.client(&name);
        assert_eq!(client.call(WRITE, 0, 0, 512, &[1; 512]), EPERM);
        assert_eq!(client.call(TRIM, 0, 0, 512, &[]), EPERM);
        assert_eq!(client.call(WRITE_ZEROES, 0, 0, 512, &[]), EPERM);
        assert_eq!(client.read(0, 512), vec![0; 512]);
    });
}

#[test]
fn connections_beyond_the_exports_limit_are_closed() {
    on_every_engine(|server, export| {
        let (mut one, mut two) = (server.client(export), server.client(export));
        assert_eq!((one.read(0, 512), two.read(0, 512)), (vec![0; 512], vec![0; 512]));
        let mut stream = UnixStream::connect(server.dir.path().join("s")).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.bytes());
        stream.write_all(&hello).expect("hello");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("closed");
        assert_eq!(answer.len(), 18, "the greeting and nothing else");
    });
}

#[test]
fn a_client_that_reads_no_replies_holds_a_bounded_amount() {
    on_every_engine(|server, export| {
        let mut greedy = server.client(export);
        greedy.stream.set_nonblocking(true).expect("nonblocking");
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, READ as u8]);
        request.extend(1u64.to_be_bytes());
        request.extend(0u64.to_be_bytes());
        request.extend((1u32 << 20).to_be_bytes());
        let many = request.repeat(4096);
        // 4 GiB are asked for; the socket stops taking requests long before that is in memory.
        let mut other = server.client(export);
        while greedy.stream.write(&many).is_ok() {
            assert_eq!(other.read(512, 512), vec![0; 512], "the other client is served meanwhile");
        }
        drop(greedy);
        assert_eq!(other.read(512, 512), vec![0; 512]);
    });
}
