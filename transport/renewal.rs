//! Another certificate before the one at hand expires.

use std::fmt::Display;
use std::time::Duration;

use tracing::warn;

use crate::certs::Identity;
use crate::endpoint::Endpoint;

/// Between two tries, and between two certificates however short their lives are.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 60_000 });

/// Between two looks at the clock. A machine that slept past the end of its certificate lets nobody
/// in, and gets in nowhere, until the next one.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

impl Endpoint {
    /// Replaces the identity by what `renew` gives whenever two thirds of its life are over.
    /// Connections that stand are not touched. Never ends: whoever closes the endpoint aborts it.
    pub async fn keep_renewed<E, F>(self, renew: impl Fn(Identity) -> F)
    where
        E: Display,
        F: Future<Output = Result<Identity, E>>,
    {
        loop {
            let Some(identity) = self.identity() else { return };
            // Looked at again and again: tokio's time stands still while the machine sleeps.
            let renew_in = identity.renew_in();
            tokio::time::sleep(renew_in.min(LONGEST_SLEEP)).await;
            if renew_in > LONGEST_SLEEP {
                continue;
            }
            let renewed = match renew(identity).await {
                Ok(identity) => self.replace_identity(identity).map_err(|cause| cause.to_string()),
                Err(cause) => Err(cause.to_string()),
            };
            if let Err(cause) = renewed {
                warn!(cause, "the certificate can't be renewed");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
