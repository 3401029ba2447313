//! Requests: where they go, and many of them in one send.

use std::io::{self, IoSlice, Write};
use std::time::Instant;

use ubi_bench::random::Random;

use crate::args::{Args, Pattern};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const HEADER_BYTES: usize = 28;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
/// Parts of one send; the kernel takes 1024.
const PARTS_MAX: usize = 1024;

/// Where the next request goes: block numbers of one connection.
#[derive(Debug)]
pub struct Blocks {
    pattern: Pattern,
    first: u64,
    count: u64,
    next: u64,
    random: Random,
}

impl Blocks {
    /// Random ones are anywhere; each connection that goes in sequence has its own stretch.
    ///
    /// # Errors
    /// When there are fewer blocks than connections.
    pub fn new(args: &Args, index: usize, size_bytes: u64) -> Result<Self, String> {
        let blocks = size_bytes / u64::from(args.block_size);
        let share = blocks / args.connections as u64;
        if share == 0 {
            return Err(format!("{size_bytes} bytes are too few for this load"));
        }
        let (first, count) = match args.pattern {
            Pattern::Random => (0, blocks),
            Pattern::Sequential => (share * index as u64, share),
        };
        let seed = (args.seed << 16) + index as u64;
        Ok(Self { pattern: args.pattern, first, count, next: 0, random: Random::new(seed) })
    }

    pub fn next(&mut self) -> u64 {
        let block = match self.pattern {
            Pattern::Sequential => {
                let block = self.next;
                self.next = (block + 1) % self.count;
                block
            }
            Pattern::Random => self.random.below(self.count),
        };
        self.first + block
    }
}

/// Requests that are waiting to be sent together.
#[derive(Debug)]
pub struct Requests {
    headers: Vec<u8>,
    slots: Vec<usize>,
    /// What every write writes: nothing that compresses.
    payload: Vec<u8>,
    block_size: u32,
    write: bool,
}

impl Requests {
    pub fn new(args: &Args) -> Self {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        let payload = if args.write { (0..args.block_size).map(|_| byte()).collect() } else { Vec::new() };
        Self {
            headers: Vec::with_capacity(args.queue_depth * HEADER_BYTES),
            slots: Vec::with_capacity(args.queue_depth),
            payload,
            block_size: args.block_size,
            write: args.write,
        }
    }

    /// Add a request of one block; `slot` comes back with its reply.
    pub fn push(&mut self, slot: usize, block: u64) {
        let kind = if self.write { WRITE } else { READ };
        self.headers.extend_from_slice(&header(kind, slot as u64, block * u64::from(self.block_size), self.block_size));
        self.slots.push(slot);
    }

    /// Send all of them; `started[slot]` is when.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send(&mut self, socket: &mut impl Write, started: &mut [Instant]) -> io::Result<()> {
        if self.slots.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for &slot in &self.slots {
            started[slot] = now;
        }
        if self.write {
            let parts = self.headers.chunks_exact(HEADER_BYTES).flat_map(|header| [header, &self.payload[..]]);
            let mut slices: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
            write_all_vectored(socket, &mut slices)?;
        } else {
            write_all(socket, &self.headers)?;
        }
        self.headers.clear();
        self.slots.clear();
        Ok(())
    }
}

/// Say goodbye.
///
/// # Errors
/// What the socket says.
pub fn disconnect(socket: &mut impl Write) -> io::Result<()> {
    write_all(socket, &header(DISCONNECT, 0, 0, 0))
}

fn header(kind: u16, cookie: u64, offset: u64, length: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..].copy_from_slice(&length.to_be_bytes());
    header
}

fn write_all(socket: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Send everything, also on a socket that does not block.
fn write_all_vectored(socket: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        let some = slices.len().min(PARTS_MAX);
        match socket.write_vectored(&slices[..some]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned)).expect("a good line")
    }

    #[test]
    fn sequential_connections_have_stretches_of_their_own() {
        let args = args("--socket /s --rw read --bs 512 --connections 2");
        let walk = |index| {
            let mut blocks = Blocks::new(&args, index, 512 * 7).expect("enough blocks");
            (0..4).map(|_| blocks.next()).collect::<Vec<_>>()
        };
        assert_eq!((walk(0), walk(1)), (vec![0, 1, 2, 0], vec![3, 4, 5, 3]));
        assert!(Blocks::new(&args, 0, 512).is_err());
    }

    #[test]
    fn random_blocks_reach_everything_and_nothing_more() {
        let mut blocks = Blocks::new(&args("--socket /s --seed 3"), 0, 4096 * 10 + 4095).expect("enough blocks");
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[blocks.next() as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }

    #[test]
    fn writes_carry_their_payload_behind_each_header() {
        let mut requests = Requests::new(&args("--socket /s --rw write --bs 512 --qd 2"));
        requests.push(1, 0);
        requests.push(0, 3);
        let mut sent = Vec::new();
        let mut started = vec![Instant::now(); 2];
        requests.send(&mut sent, &mut started).expect("a vector takes all");
        assert_eq!(sent.len(), 2 * (28 + 512));
        assert_eq!(sent[..28], header(WRITE, 1, 0, 512));
        assert_eq!(sent[540..568], header(WRITE, 0, 3 * 512, 512));
        assert_eq!(sent[28..540], sent[568..]);
        sent.clear();
        requests.send(&mut sent, &mut started).expect("nothing to send");
        assert!(sent.is_empty());
    }
}
