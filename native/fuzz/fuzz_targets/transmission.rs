//! Whatever comes in once a client is let in, on a real socket: every request that is one is answered in a form that
//! clients accept, reads give what was written, and the server lives.
//!
//! The first byte chooses the client's dialect and whether what follows are requests of eight bytes each, sent one by one
//! and compared with a copy of the disk, or bytes to be sent as they are.
#![no_main]

#[path = "../../engine/tests/nbd_support/client.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod client;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use client::*;
use libfuzzer_sys::fuzz_target;
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::frontend::nbd::export::ExportOptions;
use ubi_engine::frontend::nbd::listener::{ListenOptions, NbdListener};
use ubi_engine::reactor::IoEngine;

const SIZE: u64 = 256 << 10;
const BLOCK: u64 = 512;
/// Longest payload that is sent.
const PAYLOAD_MAX: u64 = 64 << 10;
/// The errors that a RAM disk of this size can have.
const ERRORS: [u32; 4] = [EINVAL, ENOSPC, ENOTSUP, 0];

struct World {
    _engine: Engine,
    _listener: NbdListener,
    _folder: tempfile::TempDir,
    socket: PathBuf,
    /// What the export "checked" holds.
    copy: Mutex<Vec<u8>>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let options = EngineOptions {
            cpus: Vec::new(),
            reactors: 1,
            io_engine: Some(IoEngine::Threads),
            memory_budget_bytes: 64 << 20,
        };
        let engine = Engine::start(&options).expect("engine");
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("s");
        let listener = engine.listen_nbd_unix(&socket, ListenOptions::default()).expect("listen");
        for name in ["checked", "raw"] {
            let bdev = Arc::new(MallocBdev::new(name, SIZE / BLOCK, BLOCK as u32).expect("malloc"));
            let export = ExportOptions {
                name: name.into(),
                bdev,
                readonly: false,
                default: false,
                max_connections: 0,
                max_handshakes_per_s: 0,
                description: String::new(),
            };
            listener.add_export(export).expect("export");
        }
        listener.open().expect("open");
        let copy = Mutex::new(vec![0; SIZE as usize]);
        World { _engine: engine, _listener: listener, _folder: folder, socket, copy }
    })
}

/// One request out of eight bytes of input.
struct Op {
    command: u16,
    flags: u16,
    offset: u64,
    length: u64,
    fill: u8,
}

impl Op {
    fn new(bytes: &[u8; 8], is_extended: bool) -> Self {
        let [command, flags, a, b, c, d, fill, tweak] = *bytes;
        let mut offset = u64::from(u16::from_be_bytes([a, b])) * 8;
        let mut length = u64::from(u16::from_be_bytes([c, d])) * 4;
        offset = if tweak & 1 != 0 { offset + 1 } else { offset };
        offset = if tweak & 2 != 0 { u64::MAX - offset } else { offset };
        length = if tweak & 4 != 0 { length + 3 } else { length };
        length = if tweak & 8 != 0 && is_extended { length << 32 } else { length };
        let flags = u16::from(flags & 0x3f) | if tweak & 16 != 0 { 1 << 9 } else { 0 };
        Self { command: u16::from(command % 10), flags, offset, length, fill }
    }

    fn carries_payload(&self, is_extended: bool) -> bool {
        self.command == WRITE || is_extended && self.flags & PAYLOAD_LEN != 0 && self.command != DISC
    }
}

/// Send a request, take its reply and compare; false when the connection has come to its end.
fn carry_out(client: &mut Client, op: &mut Op, is_extended: bool, copy: &mut [u8]) -> bool {
    let mut payload = Vec::new();
    if op.carries_payload(is_extended) {
        op.length = op.length.min(PAYLOAD_MAX);
        payload = vec![op.fill; op.length as usize];
    }
    if op.command == DISC {
        client.send(DISC, 0, 1, 0, 0, &[]);
        assert!(client.is_closed());
        return false;
    }
    let replied = client.call(op.command, op.flags, op.offset, op.length, &payload);
    assert!(ERRORS.contains(&replied.error), "error {}", replied.error);
    if replied.error != 0 || op.length == 0 || op.command == FLUSH {
        return true;
    }
    let range = op.offset as usize..(op.offset + op.length.min(SIZE)) as usize;
    match op.command {
        READ => assert!(replied.bytes(op.offset, op.length) == copy[range], "a read gives what was written"),
        WRITE => copy[range].fill(op.fill),
        WRITE_ZEROES => copy[range].fill(0),
        TRIM => {
            let (start, end) = (range.start.next_multiple_of(BLOCK as usize), range.end & !(BLOCK as usize - 1));
            copy[start..end.max(start)].fill(0);
        }
        BLOCK_STATUS => {
            for (_, extents) in &replied.status {
                assert!(!extents.is_empty() && extents.iter().all(|extent| extent.0 > 0));
                assert!(op.flags & REQ_ONE == 0 || extents.len() == 1);
            }
        }
        CACHE => {}
        other => panic!("command {other} succeeded"),
    }
    true
}

fuzz_target!(|data: &[u8]| {
    let [mode, input @ ..] = data else { return };
    let world = world();
    let dialect = [Dialect::Simple, Dialect::Structured, Dialect::Extended][usize::from(mode % 3)];
    let is_extended = dialect == Dialect::Extended;
    let contexts: &[&str] = match dialect {
        Dialect::Simple => &[],
        Dialect::Structured | Dialect::Extended => &["base:allocation", "x-ubi:fetch"],
    };
    let wish = Wish { dialect, contexts, block_sizes: mode & 0x40 != 0 };
    if mode & 0x80 == 0 {
        let mut client = Client::connect(&world.socket, "checked", &wish);
        let mut copy = world.copy.lock().expect("nobody panicked");
        let (ops, _) = input.as_chunks::<8>();
        for bytes in ops.iter().take(32) {
            if !carry_out(&mut client, &mut Op::new(bytes, is_extended), is_extended, &mut copy) {
                return;
            }
        }
        return;
    }
    let mut client = Client::connect(&world.socket, "raw", &wish);
    let _ = client.stream.write_all(&input[..input.len().min(32 << 10)]);
    let _ = client.stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let _ = client.stream.read_to_end(&mut answers);
    let magics = [0x6744_6698u32, 0x668e_33ef, 0x6e8a_278c];
    assert!(answers.is_empty() || magics.iter().any(|magic| answers.starts_with(&magic.to_be_bytes())));
});
