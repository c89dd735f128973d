//! Places of lines at the scheduler, shared by all jobs: whose tenant has the fewest gets the next,
//! however many jobs it has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// As many as fit; their number changes with the pipelines.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    num: usize,
    num_taken: usize,
    /// Of each tenant that has any.
    held: HashMap<String, usize>,
    /// In the order in which they came.
    waiting: Vec<(String, oneshot::Sender<Place>)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    tenant: String,
}

impl Places {
    /// There are so many from now on; those that are taken beyond stay so until they are given
    /// back.
    pub(super) fn fit(&self, wanted: usize) {
        self.state().num = wanted;
        self.hand_out();
    }

    /// The next that is free and that nobody else should have.
    pub(super) async fn take(&self, tenant: &str) -> Place {
        loop {
            let (told, hears) = oneshot::channel();
            self.state().waiting.push((tenant.to_owned(), told));
            self.hand_out();
            if let Ok(place) = hears.await {
                return place;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(&self) {
        loop {
            let next = self.state().next();
            let Some((tenant, told)) = next else { return };
            // Whoever has gone meanwhile drops it, and so gives it back.
            drop(told.send(Place { places: self.clone(), tenant }));
        }
    }
}

impl State {
    /// Takes a place for whoever is to have it.
    fn next(&mut self) -> Option<(String, oneshot::Sender<Place>)> {
        self.waiting.retain(|(_, told)| !told.is_closed());
        if self.num_taken >= self.num {
            return None;
        }
        let held = |tenant: &String| self.held.get(tenant).copied().unwrap_or(0);
        let at = (0..self.waiting.len()).min_by_key(|at| held(&self.waiting[*at].0))?;
        let (tenant, told) = self.waiting.remove(at);
        self.num_taken += 1;
        *self.held.entry(tenant.clone()).or_default() += 1;
        Some((tenant, told))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state();
        state.num_taken -= 1;
        if let Some(held) = state.held.get_mut(&self.tenant) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.tenant);
            }
        }
        drop(state);
        self.places.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn now(places: &Places, tenant: &str) -> Option<Place> {
        places.take(tenant).now_or_never()
    }

    #[test]
    fn there_are_as_many_places_as_fit_whatever_is_taken() {
        let places = Places::default();
        assert!(now(&places, "a").is_none());
        places.fit(2);
        let [one, two] = [now(&places, "a"), now(&places, "a")];
        assert!(one.is_some() && two.is_some());
        places.fit(1);
        drop(one);
        assert!(now(&places, "a").is_none());
        drop(two);
        assert!(now(&places, "a").is_some());
        assert!(places.state().held.is_empty() && places.state().num_taken == 0);
    }

    /// Five jobs of one tenant wait before two of another, as fast as they are given places.
    #[tokio::test]
    async fn tenants_have_as_many_places_however_many_jobs_they_have() {
        let places = Places::default();
        places.fit(8);
        let mut held: Vec<_> = (0..8).map(|_| now(&places, "many").unwrap()).collect();
        let count = |held: &[Place], tenant| held.iter().filter(|it| it.tenant == tenant).count();
        let wait = |tenant: &'static str| {
            let places = places.clone();
            tokio::spawn(async move { places.take(tenant).await })
        };
        let mut waiting: Vec<_> = ["many"; 5].into_iter().chain(["few"; 2]).map(wait).collect();
        // Whoever has gone doesn't count, nor gets one.
        waiting.remove(1).abort();
        for _ in 0..60 {
            tokio::task::yield_now().await;
            held.remove(0);
            let (place, at, _) = futures::future::select_all(waiting.iter_mut()).await;
            let place = place.unwrap();
            waiting[at] = wait(if place.tenant == "many" { "many" } else { "few" });
            held.push(place);
        }
        assert_eq!((count(&held, "many"), count(&held, "few")), (4, 4));
        // Nobody holds back what the other doesn't want.
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::yield_now().await;
        held.clear();
        let all: Vec<_> = std::iter::from_fn(|| now(&places, "many")).take(9).collect();
        assert_eq!(all.len(), 8);
    }
}
