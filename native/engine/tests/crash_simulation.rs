//! The overlay under the accidents that a disk and its process can have, simulated; docs/simulation.md.
//!
//! `UBI_SIM_STATES=n` looks at n distinct states of random histories, `UBI_SIM_SEED=s` begins with that seed (a failure
//! prints the one to give, `random` is a new one), `UBI_SIM_SHORT=n` repeats short script n.

mod sim;

use std::env;
use std::fmt::Write;
use std::time::Instant;

use sim::*;

/// Where random histories begin unless they are told: the same run everywhere.
const SEED: u64 = 20_261_121;

/// A build without optimisation looks at a sample only.
const IS_QUICK: bool = cfg!(debug_assertions);

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")))
}

/// The seed that was asked for; `random` is one that nobody has had before.
fn first_seed() -> u64 {
    match env::var("UBI_SIM_SEED").as_deref() {
        Ok("random") => Random::now(),
        _ => number("UBI_SIM_SEED").unwrap_or(SEED),
    }
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

/// What short histories do without: faults, further lives and unusual settings.
const ONLY_RANDOM: &[Subject] = &[
    Subject::NoSync,
    Subject::Adopt,
    Subject::Takeover,
    Subject::AfterTakeover,
    Subject::MapFailed,
    Subject::SyncFailure,
    Subject::Repair,
    Subject::AfterRepair,
    Subject::WriteThrough,
    Subject::Repaired,
    Subject::FailedWrite,
    Subject::FailedSync,
    Subject::FailedImage,
    Subject::ChangedImage,
    Subject::InlineWrite,
    Subject::SecondLife,
    Subject::AfterPower,
    Subject::Hole,
    Subject::Garbage,
    Subject::PastStripes,
    Subject::LostMap,
    Subject::Discarded,
    Subject::OldBase,
    Subject::BdevUbiLife,
];

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
        for case in short_cases(&settings, script) {
            run(&case, &mut checker, &format!("UBI_SIM_SHORT={script}"));
            histories += 1;
        }
    }
    report(&checker, histories, began);
    if histories as usize >= SHORT_SCRIPTS {
        must_cover(&checker, ONLY_RANDOM);
    }
}

#[test]
fn random_histories_keep_their_promises_through_every_cut() {
    let wanted = number("UBI_SIM_STATES").unwrap_or(if IS_QUICK { 5_000 } else { 2_000_000 });
    let (first, began) = (first_seed(), Instant::now());
    println!("UBI_SIM_SEED={first}");
    let mut checker = Checker::new();
    let mut histories = 0;
    while checker.states < wanted {
        let seed = first.wrapping_add(histories);
        run(&random_case(seed), &mut checker, &format!("UBI_SIM_SEED={seed}"));
        histories += 1;
    }
    report(&checker, histories, began);
    if !IS_QUICK && wanted >= 100_000 {
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
