//! Looks at survivors: each distinct one once, by the production code and now and then by a model of bdev_ubi 0.1.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

use ubi_engine::reactor::exec::Executor;

use super::Random;
use super::bdev_ubi::BdevUbi;
use super::coverage::{Coverage, Subject, Subjects};
use super::cut::{Depth, Uncertain};
use super::oracle::{Cut, Oracle};
use super::setting::Setting;
use super::survivor::Survivors;
use super::tags::{Tag, hash, mix};

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
        (cut, uncertain): (Cut, &Uncertain),
        oracle: &Oracle,
        depth: Depth,
        subjects: Subjects,
    ) -> Result<(), String> {
        let expectation = mix(oracle.hash(cut) ^ setting_number(setting) ^ cut as u64);
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
            self.examine(setting, cut, disk, oracle).map(drop)
        })
    }

    /// Open a survivor, read all of it, compare. Returns what it reads as.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn examine(
        &mut self,
        setting: &Arc<Setting>,
        cut: Cut,
        disk: &[Tag],
        oracle: &Oracle,
    ) -> Result<Vec<Tag>, String> {
        let _entered = self.exec.enter();
        let survivors = match &mut self.survivors {
            Some((known, survivors)) if Arc::ptr_eq(known, setting) => survivors,
            other => &mut other.insert((Arc::clone(setting), Survivors::new(setting))).1,
        };
        let found = survivors.read(disk)?;
        oracle.check(cut, &found).map_err(|wrong| format!("after {cut:?}: {wrong}"))?;
        // Chosen by the state itself: a history that is repeated shows bdev_ubi the same ones.
        if mix(hash(disk) ^ oracle.hash(cut)).is_multiple_of(BDEV_UBI_ONE_IN) {
            let mut disk = survivors.disk();
            let check = |found: &[Tag]| oracle.check_by_bdev_ubi(cut, found, setting.tail());
            read_by_bdev_ubi(setting, &mut disk, |found| check(found).map_err(|wrong| wrong.to_string()))?;
            self.coverage.count(Subjects::default().with(Subject::ReadByBdevUbi));
            let back = survivors.read(&disk).map_err(|error| format!("after bdev_ubi: {error}"))?;
            check(&back).map_err(|wrong| format!("after {cut:?} and bdev_ubi: {wrong}"))?;
            self.coverage.count(Subjects::default().with(Subject::BackFromBdevUbi));
        }
        Ok(found)
    }
}

/// Let bdev_ubi read every other stripe of a disk and close it, and the whole of a copy.
fn read_by_bdev_ubi(
    setting: &Setting,
    disk: &mut [Tag],
    check: impl Fn(&[Tag]) -> Result<(), String>,
) -> Result<(), String> {
    let mut copy = disk.to_vec();
    let found = BdevUbi::open(setting, &mut copy)?.read(0..setting.volume);
    check(&found).map_err(|wrong| format!("read by bdev_ubi: {wrong}"))?;
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
    ];
    numbers.iter().fold(7, |hash, number| mix(hash ^ number))
}
