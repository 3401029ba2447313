//! What a cut may leave: a certain part, and sectors each of which may be there or not.

use super::Random;
use super::tags::Tag;

/// A sector that an operation may have changed.
#[derive(Clone, Copy)]
pub struct Item {
    pub slot: usize,
    pub tag: Tag,
    pub op: u64,
}

/// See the module. The items are in order: of two for one sector that both count, the later one is there.
pub struct Uncertain {
    pub certain: Vec<Tag>,
    pub items: Vec<Item>,
}

/// How many survivors of one cut are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// All subsets of up to this many operations (or torn units, if they are as few); a sample of so many powers of
    /// two beyond.
    pub bits: u32,
    /// Disks more on which operations are torn.
    pub torn: u32,
}

impl Uncertain {
    /// Call `look` with survivors: every subset of the operations, or of the single units, where there are few; else
    /// nothing, all, and random ones. Then with operations torn in units of `tear` sectors.
    ///
    /// # Errors
    /// The first that `look` returns; no survivor after that is looked at.
    pub fn survivors<E>(
        &self,
        depth: Depth,
        tear: usize,
        random: &mut Random,
        mut look: impl FnMut(&[Tag], bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut disk = self.certain.clone();
        if self.items.is_empty() {
            return look(&disk, false);
        }
        let units = self.groups(|item| (item.op, item.slot / tear));
        let ops = self.groups(|item| (item.op, 0));
        let few_units = units.1 <= depth.bits;
        let (groups, count) = if few_units { &units } else { &ops };
        let subsets = 1_u64 << (*count).min(depth.bits);
        for index in 0..subsets {
            let chosen = match (*count > depth.bits, index) {
                (false, subset) => subset,
                (true, 0) => 0,
                (true, 1) => u64::MAX,
                (true, _) => random.next(),
            };
            self.put(&mut disk, groups, |group| chosen >> (group % 64) & 1 == 1);
            look(&disk, few_units && ops.1 != units.1)?;
        }
        if !few_units {
            for turn in 0..depth.torn {
                // Sometimes nearly all, sometimes nearly nothing, sometimes half.
                let share = [128, 250, 6][turn as usize % 3];
                let salt = random.next();
                let is_there = |group: u32| super::tags::mix(salt ^ u64::from(group)) & 0xff < share;
                self.put(&mut disk, &units.0, is_there);
                look(&disk, true)?;
            }
        }
        Ok(())
    }

    /// One survivor at random.
    pub fn survivor(&self, tear: usize, random: &mut Random) -> Vec<Tag> {
        let mut disk = self.certain.clone();
        let groups = match random.one_in(2) {
            true => self.groups(|item| (item.op, item.slot / tear)).0,
            false => self.groups(|item| (item.op, 0)).0,
        };
        let salt = random.next();
        self.put(&mut disk, &groups, |group| super::tags::mix(salt ^ u64::from(group)) & 1 == 1);
        disk
    }

    fn put(&self, disk: &mut Vec<Tag>, groups: &[u32], is_there: impl Fn(u32) -> bool) {
        disk.clone_from(&self.certain);
        for (item, &group) in self.items.iter().zip(groups) {
            if is_there(group) {
                disk[item.slot] = item.tag;
            }
        }
    }

    /// Number the groups of items that share a key; items of a group are near each other.
    fn groups(&self, key: impl Fn(&Item) -> (u64, usize)) -> (Vec<u32>, u32) {
        let mut known: Vec<(u64, usize)> = Vec::new();
        let groups = self.items.iter().map(|item| {
            let key = key(item);
            let near = known.iter().rposition(|other| *other == key);
            near.unwrap_or_else(|| {
                known.push(key);
                known.len() - 1
            }) as u32
        });
        let groups = groups.collect();
        (groups, known.len() as u32)
    }
}
