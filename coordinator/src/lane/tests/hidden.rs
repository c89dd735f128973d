//! Prompts whose last hidden state is told.

use super::*;
use crate::request::Request;
use crate::testing::{Pipeline, request, scheduler};

/// Texts of one body are computed together, as many as fit into a step, and tell one state each.
#[test]
fn texts_to_be_embedded_share_steps() {
    let config = scheduler(|config| config.max_batched_tokens = 64);
    let mut pipeline = Pipeline::new(config, 1, 64);
    for id in 1..=16 {
        let asked = Request { tells_hidden: true, turn: id as u32, ..request(id, 8, 0) };
        pipeline.add(asked);
    }
    let mut sizes = Vec::new();
    while let Some(batch) = pipeline.step() {
        let (step, _) = pipeline.steps.pop_front().unwrap();
        let hidden = (0..batch.slices.len() as u32)
            .map(|slice| protocol::HiddenRow { slice, values: vec![1.0] });
        let sampled = Sampled { hidden: hidden.collect(), ..Pipeline::sampled(&batch) };
        sizes.push(batch.slices.len());
        pipeline.update(step, sampled);
    }
    assert_eq!(sizes, [8, 8]);
    let events = pipeline.events();
    let told = events.iter().filter(|(_, event)| matches!(event, Event::Hidden(_)));
    assert_eq!(told.count(), 16);
}
