//! Leaving off what did not pay, for longer each time in a row.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(1);
const MAX: Duration = Duration::from_millis(250);

/// When to try again.
#[derive(Debug)]
pub struct Rest {
    next: Duration,
    until: Option<Instant>,
}

impl Default for Rest {
    fn default() -> Self {
        Self { next: FIRST, until: None }
    }
}

impl Rest {
    /// Whether it is not yet time to try again.
    pub fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Rest for 1 ms, or twice as long as the last time, at most 250 ms.
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + self.next);
        self.next = (self.next * 2).min(MAX);
    }

    /// It has paid: the next rest is a short one.
    pub fn forget(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_become_longer_up_to_a_bound_and_short_again_after_a_success() {
        let (mut rest, mut now) = (Rest::default(), Instant::now());
        assert!(!rest.lasts(now));
        for ms in [1, 2, 4, 8, 16, 32, 64, 128, 250, 250] {
            rest.begin(now);
            assert!(rest.lasts(now + Duration::from_millis(ms) - Duration::from_nanos(1)));
            now += Duration::from_millis(ms);
            assert!(!rest.lasts(now));
        }
        rest.forget();
        rest.begin(now);
        assert!(!rest.lasts(now + Duration::from_millis(1)));
    }
}
