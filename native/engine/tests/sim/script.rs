//! Requests: what the queues of a client ask for, short ones all and long ones at random.

use std::ops::Range;

use super::Random;
use super::setting::{STRIPE, Setting};

/// What a queue asks for. Ranges are sectors of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Read(Range<usize>),
    Write {
        range: Range<usize>,
        fua: bool,
    },
    Zero {
        range: Range<usize>,
        no_hole: bool,
        fua: bool,
    },
    Discard {
        range: Range<usize>,
        fua: bool,
    },
    Flush,
    Prefetch(Range<usize>),
    /// Close and open again; with nothing else going on, and sometimes with a life under bdev_ubi 0.1 in between.
    Reopen {
        by_bdev_ubi: bool,
    },
}

impl Request {
    /// The sectors that it changes.
    pub fn changes(&self) -> Range<usize> {
        match self {
            Request::Write { range, .. } | Request::Zero { range, .. } | Request::Discard { range, .. } => {
                range.clone()
            }
            Request::Read(_) | Request::Flush | Request::Prefetch(_) | Request::Reopen { .. } => 0..0,
        }
    }

    pub fn is_fua(&self) -> bool {
        match self {
            Request::Write { fua, .. } | Request::Zero { fua, .. } | Request::Discard { fua, .. } => *fua,
            Request::Read(_) | Request::Flush | Request::Prefetch(_) | Request::Reopen { .. } => false,
        }
    }
}

/// A request and the queue that asks for it when its earlier ones have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub queue: usize,
    pub request: Request,
}

/// Number of requests that short scripts are made of.
const ALPHABET: usize = 16;

/// The request of a number below `ALPHABET`.
fn letter(setting: &Setting, number: usize) -> Request {
    let block = setting.block();
    let write = |range, fua| Request::Write { range, fua };
    match number {
        0 => Request::Read(STRIPE - 8..STRIPE),
        1 => Request::Read(0..setting.volume),
        2 => write(0..STRIPE, false),
        3 => write(STRIPE..STRIPE + 8, false),
        4 => write(8..8 + block, false),
        5 => write(STRIPE - 8..STRIPE + block, false),
        6 => write(STRIPE + 8..STRIPE + 16, false),
        7 => Request::Zero { range: 0..STRIPE, no_hole: false, fua: false },
        8 => Request::Zero { range: 8..16, no_hole: true, fua: false },
        9 => Request::Discard { range: 0..STRIPE, fua: false },
        10 => Request::Discard { range: STRIPE - 8..setting.volume, fua: false },
        11 => Request::Flush,
        12 => write(8..8 + block, true),
        13 => write(STRIPE..STRIPE + 16, true),
        14 => Request::Prefetch(0..setting.volume),
        _ => Request::Reopen { by_bdev_ubi: false },
    }
}

/// Number of scripts of up to three requests: every sequence, on every distribution to two queues.
pub const SHORT_SCRIPTS: usize = SHORT_SCRIPTS_OF_TWO + 4 * ALPHABET.pow(3);

/// Those of them with up to two requests, which come first.
pub const SHORT_SCRIPTS_OF_TWO: usize = ALPHABET + 2 * ALPHABET.pow(2);

/// One of them.
pub fn short(setting: &Setting, mut number: usize) -> Vec<Step> {
    for length in 1..=3_usize {
        let scripts = (1_usize << (length - 1)) * ALPHABET.pow(length as u32);
        if number < scripts {
            let (mut letters, queues) = (number >> (length - 1), (number & ((1 << (length - 1)) - 1)) << 1);
            let step = |index: usize| {
                let request = letter(setting, letters % ALPHABET);
                letters /= ALPHABET;
                Step { queue: (queues >> index) & 1, request }
            };
            return (0..length).map(step).collect();
        }
        number -= scripts;
    }
    panic!("there are {SHORT_SCRIPTS} short scripts");
}

/// A longer one.
pub fn long(setting: &Setting, random: &mut Random) -> Vec<Step> {
    let queues = *random.pick(&[1, 2, 2, 3, 4]);
    let steps = 3 + random.below(8);
    let step =
        |_| Step { queue: random.below(queues) as usize, request: written_through(setting, any(setting, random)) };
    (0..steps).map(step).collect()
}

fn any(setting: &Setting, random: &mut Random) -> Request {
    let range = any_range(setting, random);
    let fua = random.one_in(5);
    match random.below(32) {
        0..=4 => Request::Read(range),
        5..=15 => Request::Write { range, fua },
        16..=18 => Request::Zero { range, no_hole: random.one_in(2), fua },
        19..=21 => Request::Discard { range, fua },
        22..=25 => Request::Flush,
        26 | 27 => Request::Prefetch(range),
        28..=29 => Request::Reopen { by_bdev_ubi: random.one_in(3) },
        _ => letter(setting, random.below(ALPHABET as u64) as usize),
    }
}

/// What a guest without a write cache asks for instead.
fn written_through(setting: &Setting, mut request: Request) -> Request {
    match &mut request {
        Request::Write { fua, .. } | Request::Zero { fua, .. } | Request::Discard { fua, .. } => {
            *fua |= setting.write_through;
        }
        Request::Read(_) | Request::Flush | Request::Prefetch(_) | Request::Reopen { .. } => {}
    }
    request
}

/// A range with ends where something ends, or anywhere.
fn any_range(setting: &Setting, random: &mut Random) -> Range<usize> {
    let block = setting.block();
    let near = |sector: usize| sector / block;
    let blocks = setting.volume / block;
    let image_end = setting.image_end().next_multiple_of(block);
    let marks = [0, 1, near(STRIPE) - 1, near(STRIPE), near(STRIPE) + 1, near(image_end) - 1, near(image_end), blocks];
    let mut end = || match random.one_in(3) {
        true => random.below(blocks as u64 + 1) as usize,
        false => *random.pick(&marks),
    };
    let (first, second) = (end(), end());
    let (start, end) = (first.min(second), first.max(second));
    if start < end {
        start * block..end * block
    } else {
        start.min(blocks - 1) * block..(start.min(blocks - 1) + 1) * block
    }
}
