//! What a volume tells of itself, and the counters behind it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::superblock::VolumeState;
use super::uuid::Uuid;
use crate::events::Level;
use crate::reactor::exec;
use crate::reactor::sync::lock;

/// Least time between two events of one level about one volume: an operator needs one, not one a request.
const EVENT_INTERVAL: Duration = Duration::from_secs(5);

/// Progress and state of a volume; the fields of `UbiStatus` in `_native.pyi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UbiStatus {
    pub uuid: Uuid,
    /// As the superblock says.
    pub state: VolumeState,
    pub epoch: u64,
    /// "" without a map.
    pub map_path: String,
    /// What a first write to a stripe waits for: "map" or "header".
    pub acknowledged_by: &'static str,
    /// How the unclean end before was recovered: "map", "headers" or "discarded"; "" when there was none.
    pub recovered: &'static str,
    pub image_path: String,
    pub image_size_bytes: u64,
    pub stripe_size_kb: u32,
    /// Stripes that the image covers, at least in part.
    pub stripes_total: u64,
    /// Copied or written, header durable or not.
    pub stripes_present: u64,
    pub stripes_filling: u64,
    /// Header durable.
    pub stripes_published: u64,
    /// Read from the image into the base since open.
    pub fetched_bytes: u64,
    /// Guest's and fetched bytes, without metadata and zeroing.
    pub bytes_written_to_base: u64,
    pub metadata_bytes_written: u64,
    /// Flushes of the base.
    pub syncs: u64,
    pub fetch_errors: u64,
    pub sync_failed: bool,
    pub copy_on_read: bool,
    pub no_sync: bool,
    /// As in effect: false where the image's file system refuses O_DIRECT.
    pub directio: bool,
    /// "" when there was none.
    pub last_error: String,
}

/// Counters since open.
#[derive(Default)]
pub struct Counters {
    pub fetched_bytes: AtomicU64,
    /// Bytes that guests had made zero: in the bdev's `bytes_written`, but not written.
    pub zeroed_bytes: AtomicU64,
    pub metadata_bytes: AtomicU64,
    pub syncs: AtomicU64,
    pub fetch_errors: AtomicU64,
    errors: Mutex<Errors>,
}

#[derive(Default)]
struct Errors {
    last: String,
    /// When the operator was last told, of each level: a failed flush is no less news for a failed fetch.
    last_events: Vec<(Level, Instant)>,
}

impl Counters {
    pub fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    /// Remember an error; true when it is time to tell the operator of it.
    pub fn note_error(&self, level: Level, message: &str) -> bool {
        let mut errors = lock(&self.errors);
        errors.last = message.into();
        let now = exec::now();
        let last = errors.last_events.iter().find(|(of, _)| *of == level).map(|(_, last)| *last);
        let due = last.is_none_or(|last| now.duration_since(last) >= EVENT_INTERVAL);
        if due {
            errors.last_events.retain(|(of, _)| *of != level);
            errors.last_events.push((level, now));
        }
        due
    }

    /// The latest error, "" when there was none.
    pub fn last_error(&self) -> String {
        lock(&self.errors).last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_once_in_a_while_and_of_each_level() {
        crate::reactor::exec::block_on(async {
            let counters = Counters::default();
            let told: Vec<bool> = [Level::Warning, Level::Warning, Level::Error, Level::Error, Level::Warning]
                .into_iter()
                .map(|level| counters.note_error(level, "no"))
                .collect();
            assert_eq!(told, [true, false, true, false, false]);
            assert_eq!(counters.last_error(), "no");
        });
    }
}
