//! Giving way to a client on the same CPU, in the middle of work for it.
//!
//! The kernel often puts a client on the CPU of who wakes it. It would run only when this thread sleeps, after all that is
//! ready here: the disk has nothing to do meanwhile.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use super::rest::Rest;

/// Who keeps the CPU for longer is no client that takes a few replies and sends its next requests.
const TURN_MAX: Duration = Duration::from_millis(1);
/// Short turns in a row after which nobody else has use for the CPU any more: between two turns of one who never sleeps
/// there are some as well.
const SHORT_TURNS: u32 = 128;

#[derive(Default)]
struct Turns {
    rest: Rest,
    short: u32,
}

impl Turns {
    /// Note how long somebody else had the CPU.
    fn note(&mut self, took: Duration, now: Instant) {
        if took > TURN_MAX {
            self.rest.begin(now);
            self.short = 0;
            return;
        }
        self.short += 1;
        if self.short == SHORT_TURNS {
            self.rest.forget();
            self.short = 0;
        }
    }
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// Let a client run that waits for this CPU and has just got replies.
///
/// Where somebody else takes the CPU, and takes it for long, this rests: in the end a busy machine costs one such turn in
/// 250 ms.
pub fn give_way() {
    let began = Instant::now();
    TURNS.with_borrow_mut(|turns| {
        if !turns.rest.lasts(began) {
            std::thread::yield_now();
            let now = Instant::now();
            turns.note(now.duration_since(began), now);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_turn_is_followed_by_rests_that_short_ones_between_do_not_shorten() {
        let (mut turns, mut now) = (Turns::default(), Instant::now());
        let long = TURN_MAX + Duration::from_micros(1);
        for ms in [1, 2, 4, 8] {
            for _ in 1..SHORT_TURNS {
                turns.note(TURN_MAX, now);
                assert!(!turns.rest.lasts(now));
            }
            turns.note(long, now);
            now += Duration::from_millis(ms);
            assert!(turns.rest.lasts(now - Duration::from_nanos(1)) && !turns.rest.lasts(now), "{ms} ms");
        }
        for _ in 0..SHORT_TURNS {
            turns.note(Duration::ZERO, now);
        }
        turns.note(long, now);
        assert!(!turns.rest.lasts(now + Duration::from_millis(1)), "as at first");
    }
}
