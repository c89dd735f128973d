//! Masks are made on threads for work that blocks, while the step that waits for them is computed.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use futures::future::join_all;
use protocol::{Body, Frame, Masks};

use crate::request::{NextTokens, Wanted};
use crate::stages::{SendError, Stages};

/// Makes the masks and sends them in this frame.
///
/// # Errors
/// When there is no link for them.
pub(super) async fn send(stages: &Stages, frame: Frame, wanted: Wanted) -> Result<(), SendError> {
    let body = Body::Masks(made(wanted).await);
    stages.send(Frame { body, ..frame })
}

/// As many at once as the machine has processors.
async fn made(Wanted(wanted): Wanted) -> Masks {
    let at_once = available_parallelism().map_or(1, NonZero::get);
    let part = wanted.len().div_ceil(at_once).max(1);
    let parts = wanted.chunks(part).map(|part| {
        let part = part.to_vec();
        tokio::task::spawn_blocking(move || {
            let mask = |(slice, next): &(usize, Arc<dyn NextTokens>)| Some((*slice, next.mask()?));
            part.iter().filter_map(mask).collect::<Vec<_>>()
        })
    });
    // What panicked is as one that can't say.
    let found: Vec<_> =
        join_all(parts).await.into_iter().flat_map(Result::unwrap_or_default).collect();
    let masks: Vec<_> = found.iter().map(|(slice, mask)| (*slice, &mask[..])).collect();
    Masks::with(&masks)
}
