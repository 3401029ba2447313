//! Random numbers that can be repeated.

use std::time::{SystemTime, UNIX_EPOCH};

/// splitmix64.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of a test run: UBI_TEST_SEED, else the time. Printed, so that a failure can be repeated.
    pub fn seed() -> u64 {
        let given = std::env::var("UBI_TEST_SEED").ok().map(|text| text.parse().expect("UBI_TEST_SEED is a number"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let seed = given.unwrap_or(now.as_nanos() as u64);
        println!("UBI_TEST_SEED={seed}");
        seed
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}
