//! Masks are made on threads for work that blocks, while the step that waits for them is computed.

use std::sync::Arc;

use futures::future::join_all;
use protocol::{Body, Frame, Masks};
use tokio::runtime::Handle;

use crate::request::{NextTokens, WantedMasks};
use crate::stages::{SendError, Stages};

/// Makes the masks and sends them in this frame.
///
/// # Errors
/// When there is no link for them.
pub(super) async fn send(
    stages: &Stages,
    frame: Frame,
    wanted: WantedMasks,
) -> Result<(), SendError> {
    let body = Body::Masks(made(wanted).await);
    stages.send(Frame { body, ..frame })
}

/// As many at once as the runtime has threads, one for each processor: to count those takes longer
/// than most masks do.
async fn made(WantedMasks(wanted): WantedMasks) -> Masks {
    let at_once = Handle::current().metrics().num_workers();
    let part = wanted.len().div_ceil(at_once).max(1);
    let parts = wanted.chunks(part).map(|part| {
        let part = part.to_vec();
        tokio::task::spawn_blocking(move || {
            let mask = |(slice, next): &(usize, Arc<dyn NextTokens>)| Some((*slice, next.mask()?));
            part.iter().filter_map(mask).collect::<Vec<_>>()
        })
    });
    // Nothing is missing but at the process' end: who can't say what may come tells so.
    let found: Vec<_> =
        join_all(parts).await.into_iter().flat_map(Result::unwrap_or_default).collect();
    let masks: Vec<_> = found.iter().map(|(slice, mask)| (*slice, &mask[..])).collect();
    Masks::with(&masks)
}
