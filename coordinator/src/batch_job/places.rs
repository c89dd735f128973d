//! Places of lines at the scheduler, shared by all jobs in turn.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many as fit; their number changes with the pipelines.
#[derive(Debug)]
pub(super) struct Places {
    semaphore: Arc<Semaphore>,
    num: Mutex<usize>,
}

impl Default for Places {
    fn default() -> Self {
        Self { semaphore: Arc::new(Semaphore::new(0)), num: Mutex::new(0) }
    }
}

impl Places {
    /// There are so many from now on; those that are taken beyond stay so until they are given
    /// back.
    pub(super) fn fit(&self, wanted: usize) {
        let mut num = self.num.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted > *num {
            self.semaphore.add_permits(wanted - *num);
            *num = wanted;
        } else {
            *num -= self.semaphore.forget_permits(*num - wanted);
        }
    }

    /// The next that is free; whoever waits for longest gets it.
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.semaphore).acquire_owned().await;
        place.expect("nobody closes it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn there_are_as_many_places_as_fit_whatever_is_taken() {
        let places = Places::default();
        assert!(places.take().now_or_never().is_none());
        places.fit(2);
        let [one, two] = [places.take().now_or_never(), places.take().now_or_never()];
        assert!(one.is_some() && two.is_some());
        places.fit(1);
        drop(one);
        places.fit(1);
        assert!(places.take().now_or_never().is_none());
        drop(two);
        assert!(places.take().now_or_never().is_some());
    }
}
