//! A deterministic simulation of the ubi overlay and of everything that can happen to the disk below it.
//!
//! The production code runs on one thread over a base, an image and a clock that are simulated; a seed decides what
//! happens next. docs/simulation.md says what is simulated, what is promised and how to repeat a run.
//!
//! - [`tags`]: sectors; [`setting`]: sizes and options; [`script`]: requests; [`plan`]: what is
//!   lived through
//! - [`base`], [`image`], [`host`]: what the overlay stands on; [`history`]: who decides what happens next
//! - [`cut`]: what a cut leaves; [`oracle`]: what it may leave; [`checker`], [`survivor`]: the comparison
//! - [`bdev_ubi`]: a model of the original; [`coverage`]: what was cut through
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod base;
mod bdev_ubi;
mod checker;
mod coverage;
mod cut;
mod history;
mod host;
mod image;
mod oracle;
mod plan;
mod random;
mod script;
mod setting;
mod survivor;
mod tags;

pub use checker::Checker;
pub use coverage::Subject;
pub use history::{Case, History};
pub use plan::{random_case, short_cases, short_settings};
pub use random::Random;
pub use script::SHORT_SCRIPTS;
