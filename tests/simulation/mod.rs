//! The scheduler in virtual time.
//!
//! The real core (`coordinator::cluster::Cluster` with its queue and lanes) is driven by an event
//! loop that a seed decides: machines that join, die and come back, links that are slow and say
//! things twice, stages that compute by rule ([`stage`]), clients who ask, wait and leave
//! ([`clients`]). After every event [`watch`] looks at what must hold. Nothing here knows a clock:
//! a run is the same every time.

pub mod cases;
pub mod clients;
mod deeds;
pub mod load;
pub mod machines;
pub mod measure;
pub mod model;
pub mod random;
pub mod report;
pub mod scenario;
pub mod stage;
pub mod watch;
pub mod world;

pub use report::Tally;
pub use scenario::Scenario;
pub use world::{Outcome, World};

/// Runs a scenario; what a panic in the core says is a violation, too.
pub fn run(scenario: &Scenario) -> Outcome {
    let run = std::panic::AssertUnwindSafe(|| World::new(scenario).run());
    std::panic::catch_unwind(run).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        Outcome { violation: Some(format!("the core panicked: {text}")), ..Outcome::default() }
    })
}

/// One line that says what went wrong and how to see it again.
pub fn replay(seed: u64, violation: &str) -> String {
    format!("{violation}\n  again: cargo run -p tests --bin simulate -- --seeds 1 --seed {seed}")
}
