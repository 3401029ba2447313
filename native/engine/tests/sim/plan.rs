//! The histories that are lived through: every short one, and random ones.

use std::sync::Arc;

use super::Random;
use super::cut::Depth;
use super::history::Case;
use super::script::{Request, SHORT_SCRIPTS_OF_TWO, Step, long, short};
use super::setting::{STRIPE, Setting};

/// A short script with everything that it is lived through with: up to two requests in each of the eight settings
/// (blocks, copy on read, maps), three requests in one of them by turns.
pub fn short_cases(settings: &[Arc<Setting>], script: usize) -> impl Iterator<Item = Case> + '_ {
    let is_longest = script >= SHORT_SCRIPTS_OF_TWO;
    let by_turns = (script / settings.len() + script) % settings.len();
    let chosen = settings.iter().enumerate().filter(move |(index, _)| !is_longest || *index == by_turns);
    chosen.map(move |(_, setting)| {
        let depth = if is_longest { Depth { bits: 3, torn: 2 } } else { Depth { bits: 4, torn: 4 } };
        let steps = short(setting, script);
        Case { setting: Arc::clone(setting), script: steps, seed: script as u64, lives: 0, is_hasty: false, depth }
    })
}

/// The settings of short scripts.
pub fn short_settings() -> Vec<Arc<Setting>> {
    let setting = |number| {
        let block_size = if number & 1 == 0 { 512 } else { 4096 };
        let (copy_on_read, has_maps) = (number & 2 == 0, number & 4 == 0);
        Setting { block_size, copy_on_read, has_maps, ..Setting::plain() }.shared()
    };
    (0..8).map(setting).collect()
}

/// Everything about a random history, from its seed.
pub fn random_case(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let block_size = *random.pick(&[512, 4096]);
    let mut setting = Setting {
        block_size,
        tear: if block_size == 4096 && random.one_in(2) { 8 } else { 1 },
        copy_on_read: !random.one_in(3),
        no_sync: random.one_in(6),
        has_hole: random.one_in(4),
        unmap_reads_zero: !random.one_in(4),
        inline: random.one_in(3),
        fault_one_in: random.one_in(3).then_some(12),
        image_changes: random.one_in(16),
        has_maps: !random.one_in(4),
        write_through: random.one_in(12),
        keeps: random.one_in(2),
        ..Setting::plain()
    };
    setting.loses_map = setting.has_maps && setting.fault_one_in.is_none() && random.one_in(6);
    if random.one_in(8) {
        setting.volume = 2 * STRIPE + 16;
    }
    let mut script = long(&setting, &mut random);
    let is_hasty = setting.has_maps && random.one_in(6);
    let lives = if is_hasty { 4 } else { *random.pick(&[0, 0, 1, 2]) };
    if is_hasty {
        script.push(Step { queue: 0, request: Request::Reopen { by_bdev_ubi: false } });
    }
    let depth = Depth { bits: 4, torn: 4 };
    Case { setting: setting.shared(), script, seed: random.next(), lives, is_hasty, depth }
}
