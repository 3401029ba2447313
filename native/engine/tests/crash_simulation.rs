//! The overlay under the accidents that a disk and its process can have, simulated; docs/simulation.md.
//!
//! `UBI_SIM_STATES=n` looks at n distinct states of random histories, `UBI_SIM_SEED=s` begins with that seed (a failure
//! prints the one to give), `UBI_SIM_SHORT=n` repeats short script n.

mod sim;

use std::env;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use sim::*;

/// A build without optimisation looks at a sample only.
const IS_QUICK: bool = cfg!(debug_assertions);

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")))
}

/// Live through a case; on a broken promise once more, to tell the events.
fn run(case: &Case, checker: &mut Checker, how_to_repeat: &str) -> u64 {
    History::new(case, checker, false).run().unwrap_or_else(|_| {
        let wrong = History::new(case, &mut Checker::new(), true).run().expect_err("the same happens again");
        panic!("{how_to_repeat} repeats this: {wrong}");
    })
}

fn report(checker: &Checker, histories: u64, began: Instant) {
    let (states, cuts) = (checker.states, checker.cuts);
    let mut text = format!("simulation: {states} distinct states of {cuts} survivors in {histories} histories, ");
    writeln!(text, "{:.0} s", began.elapsed().as_secs_f64()).expect("a string takes all");
    println!("{text}{}", checker.coverage);
}

fn must_cover(checker: &Checker, except: &[Subject]) {
    let missing: Vec<_> = checker.coverage.missing().filter(|(subject, _)| !except.contains(subject)).collect();
    assert!(missing.is_empty(), "no state was cut through {missing:?}");
}

/// The eight settings of short scripts.
fn short_settings() -> Vec<Arc<Setting>> {
    let setting = |number| {
        let block_size = if number & 1 == 0 { 512 } else { 4096 };
        let (copy_on_read, no_sync) = (number & 2 == 0, number & 4 != 0);
        Setting { block_size, copy_on_read, no_sync, tear: 1, ..Setting::plain() }.shared()
    };
    (0..8).map(setting).collect()
}

/// Every sequence of up to three requests on two queues; up to two of them in every setting, three in one of the eight
/// by turns.
#[test]
fn every_short_sequence_of_requests_keeps_its_promises_through_every_cut() {
    let (settings, began) = (short_settings(), Instant::now());
    let mut checker = Checker::new();
    let mut histories = 0;
    let stride = if IS_QUICK { 1031 } else { 1 };
    let scripts = number("UBI_SIM_SHORT").map_or(0..SHORT_SCRIPTS, |script| script as usize..script as usize + 1);
    for script in scripts.step_by(stride) {
        let is_longest = script >= SHORT_SCRIPTS_OF_TWO;
        for (index, setting) in settings.iter().enumerate() {
            if is_longest && script / stride % settings.len() != index {
                continue;
            }
            let depth = if is_longest { Depth { bits: 3, torn: 1 } } else { Depth { bits: 4, torn: 4 } };
            let steps = short(setting, script);
            let case = Case { setting: Arc::clone(setting), script: steps, seed: script as u64, lives: 0, depth };
            run(&case, &mut checker, &format!("UBI_SIM_SHORT={script}"));
            histories += 1;
        }
    }
    report(&checker, histories, began);
}

/// Everything about a random history, from its seed.
fn random_case(seed: u64) -> Case {
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
        ..Setting::plain()
    };
    if random.one_in(8) {
        setting.volume = 2 * STRIPE + 16;
    }
    let script = long(&setting, &mut random);
    let lives = *random.pick(&[0, 0, 1, 2]);
    Case { setting: setting.shared(), script, seed: random.next(), lives, depth: Depth { bits: 4, torn: 4 } }
}

#[test]
fn random_histories_keep_their_promises_through_every_cut() {
    let wanted = number("UBI_SIM_STATES").unwrap_or(if IS_QUICK { 5_000 } else { 1_900_000 });
    let (first, began) = (number("UBI_SIM_SEED").unwrap_or_else(Random::now), Instant::now());
    println!("UBI_SIM_SEED={first}");
    let mut checker = Checker::new();
    let mut histories = 0;
    while checker.states < wanted {
        let seed = first.wrapping_add(histories);
        run(&random_case(seed), &mut checker, &format!("UBI_SIM_SEED={seed}"));
        histories += 1;
    }
    report(&checker, histories, began);
    if !IS_QUICK {
        must_cover(&checker, &[]);
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let trace = |seed| History::new(&random_case(seed), &mut Checker::new(), false).run().expect("promises are kept");
    let traces: Vec<u64> = (0..40).map(trace).collect();
    assert_eq!(traces, (0..40).map(trace).collect::<Vec<_>>());
    let distinct: std::collections::HashSet<_> = traces.iter().collect();
    assert_eq!(distinct.len(), traces.len(), "another seed is another history");
}
