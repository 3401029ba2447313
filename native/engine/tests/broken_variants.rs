//! Each known way to break the overlay by one line is found by the simulation; docs/simulation.md has the table.

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim::*;
use ubi_engine::fault::{Fault, is_on, switch};

/// Faults of the process and its descriptors, which the simulation has none of: tests/crash/test_fence.py finds them.
const OF_THE_PROCESS: &[Fault] = &[Fault::UnlockedDescriptor];

/// Random histories until a fault has to be found.
const HISTORIES_MAX: u64 = 20_000;

/// Live through random histories with a fault; the number of the first that shows it, and how.
fn find(fault: Fault) -> Option<(u64, String)> {
    switch(Some(fault));
    let found = (0..HISTORIES_MAX).find_map(|seed| {
        let case = random_case(seed);
        let mut checker = Checker::new();
        let result = catch_unwind(AssertUnwindSafe(|| History::new(&case, &mut checker, false).run()));
        let wrong = match result {
            Ok(Ok(_)) => return None,
            Ok(Err(wrong)) => wrong.lines().next().unwrap_or_default().to_owned(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                format!("asserted: {}", text.unwrap_or_default().replace('\n', " "))
            }
        };
        Some((seed, wrong))
    });
    switch(None);
    found
}

#[test]
fn every_broken_variant_is_found() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // What a fault makes the overlay assert is what is wanted.
        if !Fault::ALL.iter().any(|(fault, _)| is_on(*fault)) {
            usual(info);
        }
    }));
    let mut missed = Vec::new();
    for (fault, text) in Fault::ALL.iter().filter(|(fault, _)| !OF_THE_PROCESS.contains(fault)) {
        match find(*fault) {
            Some((seed, wrong)) => println!("{fault:?} ({text}): history {seed}: {wrong}"),
            None => missed.push((fault, text)),
        }
    }
    assert!(missed.is_empty(), "nothing finds {missed:?}");
}

#[test]
fn without_a_fault_nothing_is_found() {
    for seed in 0..200 {
        let case = random_case(seed);
        History::new(&case, &mut Checker::new(), false).run().unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}
