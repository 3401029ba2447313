//! What every sector of the volume may read as, from the requests alone: what was submitted, what was acknowledged,
//! what was covered by a flush. It knows nothing of stripes.
//!
//! Two lists a sector. `now`: what a read, or a process death, may show. An acknowledged write removes everything that
//! had ended before it was submitted; what ran at the same time stays. `after_loss`: what a power cut may show; the same
//! removal happens only when a flush, submitted after the acknowledgement, has completed (or the write was FUA).

use std::ops::Range;

use smallvec::SmallVec;

use super::tags::{Tag, mix};

/// Something that a sector may hold.
#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: Tag,
    request: usize,
    start: u64,
    /// MAX while its request runs.
    end: u64,
    /// Acknowledged, and bound to be there.
    counts: bool,
}

type Entries = SmallVec<[Entry; 2]>;

/// See the module.
pub struct Oracle {
    now: Vec<Entries>,
    after_loss: Vec<Entries>,
    reads: Vec<Read>,
    time: u64,
}

struct Read {
    request: usize,
    first: usize,
    allowed: Vec<SmallVec<[Tag; 2]>>,
}

/// Which kind of cut a disk has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    ProcessDeath,
    PowerLoss,
}

/// A sector that reads as what it must not.
#[derive(Debug)]
pub struct Wrong {
    pub sector: usize,
    pub found: Tag,
    pub allowed: Vec<Tag>,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sector {} reads as {:?}, not as one of {:?}", self.sector, self.found, self.allowed)
    }
}

impl Oracle {
    /// A volume that reads as `fresh`.
    pub fn new(fresh: &[Tag]) -> Self {
        let entry = |&tag| SmallVec::from_elem(Entry { tag, request: usize::MAX, start: 0, end: 0, counts: true }, 1);
        let now: Vec<Entries> = fresh.iter().map(entry).collect();
        Self { after_loss: now.clone(), now, reads: Vec::new(), time: 0 }
    }

    /// Changes with everything that changes what is allowed.
    pub fn tick_count(&self) -> u64 {
        self.time
    }

    /// A new point in time.
    pub fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A request that writes `tag_of` to a range is submitted.
    pub fn submit(&mut self, request: usize, range: Range<usize>, tag_of: impl Fn(usize) -> Tag) {
        let start = self.tick();
        for sector in range.clone() {
            let tag = tag_of(sector);
            let entry = Entry { tag, request, start, end: u64::MAX, counts: false };
            self.now[sector].push(entry);
            self.after_loss[sector].push(entry);
            for read in &mut self.reads {
                if let Some(allowed) = sector.checked_sub(read.first).and_then(|at| read.allowed.get_mut(at)) {
                    allowed.push(tag);
                }
            }
        }
    }

    /// It has ended. `counts`: it has succeeded, and its bytes are bound to be there (a discard's are not).
    pub fn end(&mut self, request: usize, range: Range<usize>, counts: bool, fua: bool) {
        let end = self.tick();
        for sector in range {
            finish(&mut self.now[sector], request, end, counts, counts);
            finish(&mut self.after_loss[sector], request, end, counts, counts && fua);
        }
    }

    /// A flush that was submitted at `start` has completed.
    pub fn flushed(&mut self, start: u64) {
        for entries in &mut self.after_loss {
            if entries.len() > 1 {
                let covered = entries.iter().filter(|entry| entry.counts && entry.end < start);
                let newest = covered.map(|entry| entry.start).max().unwrap_or(0);
                entries.retain(|entry| entry.end >= newest);
            }
        }
    }

    /// A read of a range is submitted.
    pub fn submit_read(&mut self, request: usize, range: Range<usize>) {
        let allowed = self.now[range.clone()].iter().map(|entries| entries.iter().map(|entry| entry.tag).collect());
        self.reads.push(Read { request, first: range.start, allowed: allowed.collect() });
    }

    /// It has ended, with these sectors if it succeeded.
    ///
    /// # Errors
    /// The first sector that shows what it never held meanwhile.
    pub fn end_read(&mut self, request: usize, found: Option<&[Tag]>) -> Result<(), Wrong> {
        let index = self.reads.iter().position(|read| read.request == request).expect("a read that runs");
        let read = self.reads.swap_remove(index);
        for (at, &found) in found.unwrap_or_default().iter().enumerate() {
            if !read.allowed[at].contains(&found) {
                return Err(Wrong { sector: read.first + at, found, allowed: read.allowed[at].to_vec() });
            }
        }
        Ok(())
    }

    /// Whether a volume that reads as `found` after a cut is what was promised.
    ///
    /// # Errors
    /// The first sector that is not.
    pub fn check(&self, cut: Cut, found: &[Tag]) -> Result<(), Wrong> {
        for (sector, (entries, &found)) in self.entries(cut).iter().zip(found).enumerate() {
            if entries.iter().all(|entry| entry.tag != found) {
                let allowed = entries.iter().map(|entry| entry.tag).collect();
                return Err(Wrong { sector, found, allowed });
            }
        }
        Ok(())
    }

    /// A number for all that `check` depends on.
    pub fn hash(&self, cut: Cut) -> u64 {
        self.entries(cut).iter().fold(0, |hash: u64, entries| {
            let tags = entries.iter().fold(0, |sum: u64, entry| sum.wrapping_add(mix(entry.tag.number())));
            (hash ^ tags).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
        })
    }

    /// The process has died; the volume reads as `found` since. What was acknowledged still waits for its flush.
    pub fn survive_process_death(&mut self, found: &[Tag]) {
        let time = self.tick();
        self.reads.clear();
        for entry in self.after_loss.iter_mut().flatten() {
            entry.end = entry.end.min(time);
        }
        for (entries, &tag) in self.now.iter_mut().zip(found) {
            let entry = Entry { tag, request: usize::MAX, start: time, end: time, counts: true };
            *entries = SmallVec::from_elem(entry, 1);
        }
    }

    /// The same, and what was not found is given up: the next flush makes durable what was.
    pub fn give_up_what_is_not_found(&mut self, found: &[Tag]) {
        self.survive_process_death(found);
        for (entries, now) in self.after_loss.iter_mut().zip(&self.now) {
            entries.extend_from_slice(now);
        }
    }

    /// Power was lost; the volume reads as `found` since, durably.
    pub fn survive_power_loss(&mut self, found: &[Tag]) {
        self.now.clone_from(&self.after_loss);
        self.survive_process_death(found);
        self.after_loss.clone_from(&self.now);
    }

    fn entries(&self, cut: Cut) -> &[Entries] {
        match cut {
            Cut::ProcessDeath => &self.now,
            Cut::PowerLoss => &self.after_loss,
        }
    }
}

/// Note that a request has ended; if it is `final_`, nothing that had ended before it can be there any more.
fn finish(entries: &mut Entries, request: usize, end: u64, counts: bool, is_final: bool) {
    let Some(entry) = entries.iter_mut().find(|entry| entry.request == request && entry.end == u64::MAX) else {
        return;
    };
    (entry.end, entry.counts) = (end, counts);
    let start = entry.start;
    if is_final {
        entries.retain(|entry| entry.end >= start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Tag = Tag::ZERO;

    fn written(request: usize) -> Tag {
        Tag::written(request, 0)
    }

    fn allowed(oracle: &Oracle, cut: Cut) -> Vec<Tag> {
        oracle.entries(cut)[0].iter().map(|entry| entry.tag).collect()
    }

    #[test]
    fn an_acknowledged_write_survives_a_process_and_a_flushed_one_a_power_cut() {
        let mut oracle = Oracle::new(&[OLD]);
        oracle.submit(1, 0..1, |_| written(1));
        assert_eq!(allowed(&oracle, Cut::ProcessDeath), [OLD, written(1)]);
        oracle.end(1, 0..1, true, false);
        assert_eq!(allowed(&oracle, Cut::ProcessDeath), [written(1)]);
        assert_eq!(allowed(&oracle, Cut::PowerLoss), [OLD, written(1)]);
        let early = oracle.tick();
        oracle.submit(2, 0..1, |_| written(2));
        oracle.end(2, 0..1, true, false);
        oracle.flushed(early);
        assert_eq!(allowed(&oracle, Cut::PowerLoss), [written(1), written(2)]);
        let late = oracle.tick();
        oracle.flushed(late);
        assert_eq!(allowed(&oracle, Cut::PowerLoss), [written(2)]);
    }

    #[test]
    fn of_two_writes_at_the_same_time_either_may_be_there() {
        let mut oracle = Oracle::new(&[OLD]);
        oracle.submit(1, 0..1, |_| written(1));
        oracle.submit(2, 0..1, |_| written(2));
        oracle.end(2, 0..1, true, true);
        oracle.end(1, 0..1, true, false);
        assert_eq!(allowed(&oracle, Cut::ProcessDeath), [written(1), written(2)]);
        assert_eq!(allowed(&oracle, Cut::PowerLoss), [written(1), written(2)]);
    }

    #[test]
    fn a_failed_write_may_or_may_not_be_there() {
        let mut oracle = Oracle::new(&[OLD]);
        oracle.submit(1, 0..1, |_| written(1));
        oracle.end(1, 0..1, false, false);
        let start = oracle.tick();
        oracle.flushed(start);
        assert_eq!(allowed(&oracle, Cut::ProcessDeath), [OLD, written(1)]);
        assert_eq!(allowed(&oracle, Cut::PowerLoss), [OLD, written(1)]);
    }

    #[test]
    fn a_read_may_see_what_was_there_at_any_time_while_it_ran() {
        let mut oracle = Oracle::new(&[OLD]);
        oracle.submit_read(1, 0..1);
        oracle.submit(2, 0..1, |_| written(2));
        oracle.end(2, 0..1, true, false);
        oracle.submit_read(3, 0..1);
        assert!(oracle.end_read(1, Some(&[OLD])).is_ok());
        assert!(oracle.end_read(3, Some(&[OLD])).is_err());
    }
}
