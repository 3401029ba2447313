//! Looks at survivors: each distinct one once, by the production code and now and then by a model of bdev_ubi 0.1.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use ubi_engine::bdev::ubi::layout;
use ubi_engine::bdev::ubi::superblock::{SLOT_BYTES, Superblock, VolumeState};
use ubi_engine::reactor::exec::Executor;

use super::Random;
use super::bdev_ubi::BdevUbi;
use super::coverage::{Coverage, Subject, Subjects};
use super::cut::{Depth, Uncertain};
use super::oracle::{Cut, Oracle};
use super::setting::{HEADER_SLOTS, Setting};
use super::survivor::{Machine, Survivors};
use super::tags::{SECTOR, Tag, hash, mix};

/// One survivor in this many is shown to bdev_ubi as well.
const BDEV_UBI_ONE_IN: u64 = 16;
/// States that are remembered, about 18 bytes each; a longer run begins to look at some again.
const SEEN_MAX: usize = 14_000_000;

/// See the module.
pub struct Checker {
    exec: Rc<Executor>,
    seen: HashSet<u64>,
    survivors: Option<(Arc<Setting>, Survivors)>,
    /// Cuts times survivors, whether they had been seen or not.
    pub cuts: u64,
    /// Distinct survivors with distinct expectations, opened and compared.
    pub states: u64,
    pub coverage: Coverage,
}

impl Checker {
    pub fn new() -> Self {
        Self {
            exec: Executor::new(|| {}),
            seen: HashSet::new(),
            survivors: None,
            cuts: 0,
            states: 0,
            coverage: Coverage::default(),
        }
    }

    /// Look at survivors of one cut.
    ///
    /// # Errors
    /// What the first of them shows that it must not.
    pub fn look(
        &mut self,
        setting: &Arc<Setting>,
        (cut, uncertain, machine): (Cut, &Uncertain, &Machine),
        oracle: &Oracle,
        depth: Depth,
        subjects: Subjects,
    ) -> Result<(), String> {
        let expectation = mix(oracle.hash(cut) ^ setting_number(setting) ^ cut as u64 ^ machine.hash());
        // Its own random numbers: what is looked at does not change what happens.
        let mut random = Random::new(expectation ^ uncertain.items.len() as u64);
        uncertain.survivors(depth, setting.tear, &mut random, |disk, is_torn| {
            self.cuts += 1;
            if self.seen.len() >= SEEN_MAX {
                self.seen.clear();
            }
            if !self.seen.insert(mix(hash(disk) ^ expectation)) {
                return Ok(());
            }
            self.states += 1;
            let mut subjects = subjects;
            subjects.add_if(Subject::Torn, is_torn);
            self.coverage.count(subjects);
            self.examine(setting, (cut, disk, machine), oracle).map(drop)
        })
    }

    /// Open a disk that has to be refused.
    ///
    /// # Errors
    /// It is not.
    pub fn must_refuse(&mut self, setting: &Arc<Setting>, disk: &[Tag], machine: &Machine) -> Result<(), String> {
        let _entered = self.exec.enter();
        self.coverage.count(Subjects::default().with(Subject::OldBase));
        survivors_of(&mut self.survivors, setting).refuses(disk, machine)
    }

    /// Open a survivor, read all of it, compare. Returns what it reads as.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn examine(
        &mut self,
        setting: &Arc<Setting>,
        (cut, disk, machine): (Cut, &[Tag], &Machine),
        oracle: &Oracle,
    ) -> Result<Vec<Tag>, String> {
        let missing = machine.durable & !headers(disk);
        if missing != 0 {
            return Err(format!(
                "after {cut:?}: the map said that headers are durable which are not, bits {missing:b}"
            ));
        }
        if let Some(epoch) = machine.marked_epoch.filter(|&epoch| !is_marked(disk, epoch)) {
            return Err(format!(
                "after {cut:?}: the map said that the marking of epoch {epoch} is durable, and it is not"
            ));
        }
        let _entered = self.exec.enter();
        let survivors = survivors_of(&mut self.survivors, setting);
        let opened = survivors.read(disk, machine)?;
        // What an operator drops is lost: what a power cut may leave is what is left for sure.
        let is_discarded = opened.recovered == "discarded";
        let is_dropped = machine.is_dropping || is_discarded || opened.is_repaired && !setting.keeps;
        let promised = if is_dropped { Cut::PowerLoss } else { cut };
        let check = |found: &[Tag], what: &str| {
            oracle.check(promised, found).map_err(|wrong| format!("after {cut:?}{what}: {wrong}"))
        };
        check(&opened.content, "")?;
        let subjects = [
            (Subject::Repaired, opened.is_repaired),
            (Subject::Discarded, is_discarded),
            (Subject::RecoveredByMap, opened.recovered == "map"),
            (Subject::RecoveredByHeaders, opened.recovered == "headers"),
        ];
        let subjects = subjects.into_iter().filter(|(_, is_so)| *is_so);
        self.coverage.count(subjects.fold(Subjects::default(), |all, (subject, _)| all.with(subject)));
        let found = opened.content.clone();
        // Chosen by the state itself: a history that is repeated shows bdev_ubi the same ones.
        if mix(hash(disk) ^ oracle.hash(cut)).is_multiple_of(BDEV_UBI_ONE_IN) {
            let mut as_left = disk.to_vec();
            if BdevUbi::would_open(&as_left) {
                show_to_bdev_ubi(setting, &mut as_left, |found| check(found, ", read by bdev_ubi at once"))?;
            }
            let mut closed = survivors.close(opened, &self.exec)?;
            show_to_bdev_ubi(setting, &mut closed, |found| check(found, " and a close, read by bdev_ubi"))?;
            self.coverage.count(Subjects::default().with(Subject::ReadByBdevUbi));
            let machine = Machine { adopts: true, may_be_failed: false, is_dropping: false, ..machine.clone() };
            let back = survivors.read(&closed, &machine).map_err(|error| format!("after bdev_ubi: {error}"))?;
            check(&back.content, ", a close and bdev_ubi")?;
            self.coverage.count(Subjects::default().with(Subject::BackFromBdevUbi));
        }
        Ok(found)
    }
}

/// The stripes whose headers are set, as bits.
pub fn headers(disk: &[Tag]) -> u32 {
    let mut first = [0; SECTOR];
    disk[0].fill(&mut first);
    (0..u32::BITS).filter(|&stripe| first[layout::header_at(stripe)] == 1).fold(0, |bits, stripe| bits | 1 << stripe)
}

/// Whether both superblocks and the minor version say that an epoch has begun.
fn is_marked(disk: &[Tag], epoch: u64) -> bool {
    let is_open = |slot: usize| {
        let mut bytes = [0; SLOT_BYTES];
        Tag::fill_all(&disk[slot..slot + SLOT_BYTES / SECTOR], &mut bytes);
        let found = Superblock::decode(&bytes);
        found.valid().is_some_and(|superblock| superblock.state == VolumeState::Open && superblock.epoch == epoch)
    };
    let mut first = [0; SECTOR];
    disk[0].fill(&mut first);
    layout::minor(&first) == layout::MINOR_OPEN && is_open(HEADER_SLOTS) && is_open(HEADER_SLOTS + SLOT_BYTES / SECTOR)
}

fn survivors_of<'a>(known: &'a mut Option<(Arc<Setting>, Survivors)>, setting: &Arc<Setting>) -> &'a Survivors {
    if !known.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, setting)) {
        *known = Some((Arc::clone(setting), Survivors::new(setting)));
    }
    &known.as_ref().expect("just made").1
}

/// Let bdev_ubi read one stripe of a disk and close it, and the whole of a copy.
fn show_to_bdev_ubi(
    setting: &Setting,
    disk: &mut [Tag],
    check: impl Fn(&[Tag]) -> Result<(), String>,
) -> Result<(), String> {
    let mut copy = disk.to_vec();
    check(&BdevUbi::open(setting, &mut copy)?.read(0..setting.volume))?;
    let mut volume = BdevUbi::open(setting, disk)?;
    volume.read(0..1);
    volume.close();
    Ok(())
}

/// A number for what the reading of a disk depends on.
fn setting_number(setting: &Setting) -> u64 {
    let numbers = [
        u64::from(setting.block_size),
        setting.image_bytes as u64,
        setting.volume as u64,
        u64::from(setting.has_hole),
        u64::from(setting.unmap_reads_zero),
        u64::from(setting.keeps),
    ];
    numbers.iter().fold(7, |hash, number| mix(hash ^ number))
}
