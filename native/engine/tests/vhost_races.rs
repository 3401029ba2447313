//! A guest that changes its rings while they are read: every field is read once, into private memory, and what was checked
//! is what is used. Both I/O engines.

mod vhost_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost_support::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ALL: u64 = !LOG_ALL;
const BYTES: u64 = 4 << 20;
const TIME: Duration = Duration::from_millis(400);
/// Where a driver's first ring and the data of its requests are.
const DESCRIPTORS: u64 = MEMORY_AT;
const AVAILABLE: u64 = MEMORY_AT + 0x4000;
const USED: u64 = MEMORY_AT + 0x5000;
const DATA: u64 = MEMORY_AT + 0x10_0000;

/// A number that looks random: the next of a linear congruence.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

/// Change one field after the other, thousands of times a millisecond, until told to stop.
fn change(memory: &GuestMemoryMmap, kind: usize, is_over: &AtomicBool) {
    let mut state = 0x1234_5678 + kind as u64;
    let put = |at: u64, value: u64, len: usize| {
        memory.write_slice(&value.to_le_bytes()[..len], GuestAddress(at)).expect("in memory");
    };
    let lengths = [1, 16, 512, 4096, u64::from(u32::MAX), 0, 17, 32];
    while !is_over.load(Ordering::Relaxed) {
        let (index, pick) = (next(&mut state) % 64, next(&mut state));
        let descriptor = DESCRIPTORS + index * 16;
        match kind {
            0 => put(descriptor + 8, lengths[pick as usize % 8], 4),
            1 => put(descriptor, [DATA, MEMORY_AT + MEMORY_BYTES - 8, 0, u64::MAX - 7][pick as usize % 4], 8),
            2 => put(descriptor + 12, (pick % 8) | (index << 16), 4),
            3 => put(AVAILABLE + 2, pick & 0xffff, 2),
            4 => put(AVAILABLE + 4 + index * 2, pick % 70, 2),
            // Requests' headers: kinds, sectors; and what an indirect table would be.
            5 => put(DATA + index % 4 * 0x8000 + pick % 3 * 8, pick % 16, 8),
            6 => put(USED + pick % 64 * 8, pick, 8),
            // Not where data go: a guest may well have them written over its other ring.
            7 if pick % 0x6000 < 64 * 16 => put(descriptor + 12 + pick % 4, pick >> 8, 1),
            _ => put(DESCRIPTORS + pick % 0x6000, pick >> 8, 1),
        }
    }
}

/// Tells the other thread that it is over, whatever becomes of this one.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_guest_that_changes_its_rings_while_they_are_read_harms_nobody_else() {
    on_every_engine(|host| {
        let (controller, other) =
            (host.controller("vh0", host.malloc(BYTES)), host.controller("vh1", host.malloc(BYTES)));
        let memories = [memory(), memory()];
        let (_one, mut same) = ready(&controller, &memories[0], ALL);
        let (_two, mut elsewhere) = ready(&other, &memories[1], ALL);
        for kind in 0..8 {
            let memory = memory();
            let (mut frontend, mut driver) = ready(&controller, &memory, ALL);
            let mut second = Driver::new(&memory, 4, 64);
            second.slot = 8;
            second.set_up(&mut frontend);
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| change(&memory, kind, &is_over));
                let _over = Over(&is_over);
                let start = Instant::now();
                while start.elapsed() < TIME / 2 {
                    for slot in 0..4 {
                        driver.offer(slot, &Request::read(u64::from(slot), 512));
                    }
                    driver.kick.write(1).expect("kick");
                    assert!(second.is_served(), "the machine's other ring, change {kind}");
                    if driver.err.read().is_ok() {
                        // It has stopped: once more from the start.
                        frontend.get_vring_base(0).expect("stop");
                        driver = Driver::new(&memory, 0, 64);
                        driver.set_up(&mut frontend);
                    }
                }
            });
            assert!(same.is_served() && elsewhere.is_served(), "change {kind}");
            frontend.get_vring_base(0).expect("stop");
            let mut again = Driver::new(&memory, 0, 64);
            again.set_up(&mut frontend);
            assert!(again.is_served() && second.is_served(), "change {kind}");
        }
    });
}

/// The same rings under settings that change: stops, starts, other memory, while a guest writes over them.
#[test]
fn settings_and_rings_that_change_at_once_harm_nobody_else() {
    on_every_engine(|host| {
        let controller = host.controller("vh0", host.malloc(BYTES));
        let memories = [memory(), memory()];
        let (_one, mut same) = ready(&controller, &memories[0], ALL);
        let memory = &memories[1];
        let (mut frontend, mut driver) = ready(&controller, memory, ALL);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| change(memory, 8, &is_over));
            let _over = Over(&is_over);
            let start = Instant::now();
            for step in 0.. {
                if start.elapsed() > TIME {
                    break;
                }
                driver.offer(0, &Request::read(0, 512));
                driver.kick.write(1).expect("kick");
                match step % 8 {
                    6 => drop(frontend.set_mem_table(&regions(memory))),
                    7 => drop(frontend.get_vring_base(0).expect("stop")),
                    step => drop(driver.set_up_by(step, &mut frontend)),
                }
                assert!(same.is_served(), "step {step}");
            }
        });
        frontend.get_vring_base(0).expect("stop");
        let mut again = Driver::new(memory, 0, 64);
        again.set_up(&mut frontend);
        assert!(again.is_served());
    });
}
