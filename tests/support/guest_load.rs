//! A verifying load for the inside of a guest: unique blocks are written and read back through O_DIRECT, for a time or
//! until a line comes in.
//!
//!     guest_load DEVICE SECONDS THREADS IMAGE_SEED
//!
//! Each thread owns every THREADS-th block of 4 KiB and knows what it holds: an image block until it was written. Any
//! error and any wrong byte ends the program with a line that begins with BAD; GOOD and the counts are the last line of
//! a run without. What was written is read again at the end.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const O_DIRECT: i32 = 0o40000;

#[repr(C, align(4096))]
struct Buffer([u8; BLOCK]);

static FAILED: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

/// What a block holds: generation 0 is the image's. The same formula as in the test.
fn content(seed: u64, block: u64, generation: u64) -> u64 {
    mix(seed ^ mix(block ^ mix(generation)))
}

fn fill(buffer: &mut Buffer, value: u64) {
    for (index, word) in buffer.0.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&value.wrapping_add(index as u64).to_le_bytes());
    }
}

fn bad(what: String) {
    println!("BAD {what}");
    FAILED.store(true, Ordering::SeqCst);
}

fn verify(file: &File, seed: u64, block: u64, generation: u64, buffer: &mut Buffer, expected: &mut Buffer) -> bool {
    if let Err(error) = file.read_exact_at(&mut buffer.0, block * BLOCK as u64) {
        bad(format!("read of block {block}: {error}"));
        return false;
    }
    fill(expected, content(seed, block, generation));
    if buffer.0 != expected.0 {
        let got = u64::from_le_bytes(buffer.0[..8].try_into().expect("8 bytes"));
        bad(format!("block {block} generation {generation} holds {got:#x}, not {:#x}", content(seed, block, generation)));
        return false;
    }
    true
}

fn work(path: &str, until: Instant, seed: u64, thread: u64, threads: u64, blocks: u64) -> (u64, u64) {
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path).expect("open the device");
    let (mut buffer, mut expected) = (Box::new(Buffer([0; BLOCK])), Box::new(Buffer([0; BLOCK])));
    let mine = blocks / threads;
    let mut generations = vec![0u64; mine as usize];
    let mut random = mix(seed ^ (thread + 1));
    let (mut reads, mut writes) = (0, 0);
    while Instant::now() < until && !FAILED.load(Ordering::SeqCst) && !STOP.load(Ordering::SeqCst) {
        random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let slot = random % mine;
        let block = slot * threads + thread;
        if random >> 62 < 2 {
            let generation = generations[slot as usize] + 1;
            fill(&mut buffer, content(seed, block, generation));
            if let Err(error) = file.write_all_at(&buffer.0, block * BLOCK as u64) {
                bad(format!("write of block {block}: {error}"));
                break;
            }
            generations[slot as usize] = generation;
            writes += 1;
        } else {
            if !verify(&file, seed, block, generations[slot as usize], &mut buffer, &mut expected) {
                break;
            }
            reads += 1;
        }
        if random % 512 == 0 && file.sync_data().is_err() {
            bad("flush".to_owned());
        }
    }
    for slot in 0..mine {
        if FAILED.load(Ordering::SeqCst) {
            break;
        }
        if generations[slot as usize] > 0 {
            verify(&file, seed, slot * threads + thread, generations[slot as usize], &mut buffer, &mut expected);
        }
    }
    (reads, writes)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize| arguments[index].parse::<u64>().expect("a number");
    let (path, seconds, threads, seed) = (arguments[1].clone(), number(2), number(3), number(4));
    let name = path.trim_start_matches("/dev/");
    let sectors = std::fs::read_to_string(format!("/sys/block/{name}/size")).expect("the device's size");
    let blocks = sectors.trim().parse::<u64>().expect("a size") * 512 / BLOCK as u64;
    std::thread::spawn(|| {
        if std::io::stdin().read_line(&mut String::new()).is_ok_and(|len| len > 0) {
            STOP.store(true, Ordering::SeqCst);
        }
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let path = path.clone();
            std::thread::spawn(move || work(&path, until, seed, thread, threads, blocks))
        })
        .collect();
    let (mut reads, mut writes) = (0, 0);
    for worker in workers {
        let (more_reads, more_writes) = worker.join().expect("a worker");
        reads += more_reads;
        writes += more_writes;
    }
    if FAILED.load(Ordering::SeqCst) {
        std::process::exit(1);
    }
    println!("GOOD {reads} reads {writes} writes");
}
