//! The cluster under every configuration that is accepted.

use std::time::Duration;

use protocol::config::Config;

use crate::cluster::Input;
use crate::cluster_tests::Test;
use crate::request::SubmitError;
use crate::testing::request;

/// Goal: what the configuration accepts also works. Method: each number at the least and the most
/// that is accepted for it; nodes join, load, and a request is computed.
#[test]
fn a_cluster_runs_with_every_number_that_is_accepted() {
    let file = toml::Table::try_from(Config::default()).unwrap();
    let mut num_served = 0;
    for (section, keys) in file.iter().map(|(name, it)| (name, it.as_table().unwrap())) {
        for key in keys.iter().filter_map(|(key, it)| it.is_integer().then_some(key)) {
            let accepted =
                |value: u64| Config::parse(&format!("[{section}]\n{key} = {value}")).ok();
            let mut powers = (0..63).rev().map(|shift| 1 << shift);
            let (least, most) = ((0..=1 << 15).find_map(accepted), powers.find_map(accepted));
            for config in [least, most] {
                let config = config.unwrap_or_else(|| panic!("{section}.{key} has no value"));
                let mut test = Test::new(|it| *it = config);
                test.join(1, 1000);
                test.join(2, 1000);
                test.wait(Duration::from_secs(3));
                test.load();
                if test.is_ready() && test.submit(1).is_ok() {
                    test.answer();
                    num_served += 1;
                }
            }
        }
    }
    assert!(num_served > 60, "{num_served}");
}

/// Stages are asked for no more blocks than are configured, and nobody is admitted who needs more.
#[test]
fn a_cache_has_no_more_blocks_than_configured() {
    let mut test = Test::new(|config| {
        (config.coordinator.stages, config.scheduler.max_blocks) = (2, 5);
    });
    test.join(1, 1000);
    test.join(2, 1000);
    assert!(test.plans.iter().all(|(_, plan)| plan.limits.max_blocks == 5));
    test.load();
    let mut submit = |id, max_tokens| {
        test.handle(Input::Submit(vec![request(id, 4, max_tokens)]));
        test.submitted.pop().unwrap()
    };
    // 4 tokens of prompt, and the last of the answer is never computed.
    assert_eq!(submit(1, 77), Ok(()));
    assert_eq!(submit(2, 78), Err(SubmitError::TooLarge { needed: 6, held: 5 }));
}

/// Where the configuration names no number of stages, only the nodes tell how many there are.
#[test]
fn more_stages_than_frames_may_wait_are_not_placed() {
    let mut test = Test::new(|config| config.transport.max_buffered_frames = 3);
    for node in 1..=3 {
        test.join(node, 1000);
    }
    test.wait(Duration::from_secs(3));
    assert!(test.plans.is_empty());
    let said = test.cluster.status().waiting_for;
    assert!(said.contains("3 stages need transport.max_buffered_frames to be 4"), "{said}");
}
