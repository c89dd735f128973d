//! Bodies become tokens: on no more threads and bytes than the configuration allows.

use std::sync::Arc;

use protocol::config::Http;
use tokio::sync::Semaphore;

use crate::openai::ApiError;

/// Bytes of a body of which nothing is rendered or compiled that are tokens sooner than a thread
/// wakes up.
pub(super) const MAX_QUICK_BYTES: usize = 1 << 10;

/// Bodies become tokens on threads of their own: a small one may render to much, and whoever
/// holds up the runtime holds up health checks and the nodes' connections with it.
#[derive(Debug)]
pub(crate) struct Parsing {
    threads: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    max_kib: u32,
}

impl Parsing {
    /// As many at once, in number and in bytes, as the configuration allows.
    pub(crate) fn new(config: &Http) -> Self {
        let max_kib = u32::try_from(config.max_parsing_bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let kib = Arc::new(Semaphore::new((max_kib as usize).min(Semaphore::MAX_PERMITS)));
        Self { threads: Arc::new(Semaphore::new(config.max_parsing_threads)), kib, max_kib }
    }

    /// Parses a body of so many bytes when its turn comes, in the order of arrival; at once, where
    /// it is short and nothing is rendered.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        (num_bytes, renders): (usize, bool),
        parse: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if num_bytes <= MAX_QUICK_BYTES && !renders {
            return parse();
        }
        let stopped = || ApiError::internal("reading the request stopped unexpectedly");
        // One that is larger than all may be has them all to itself.
        let max = self.max_kib;
        let wanted = u32::try_from(num_bytes.div_ceil(1 << 10)).map_or(max, |kib| kib.min(max));
        let held = Arc::clone(&self.kib).acquire_many_owned(wanted).await.map_err(|_| stopped())?;
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| stopped())?;
        // What is held goes back from there, also where parsing panics: it is not stopped when its
        // client goes.
        tokio::task::spawn_blocking(move || {
            let _held = (held, thread);
            parse()
        })
        .await
        .unwrap_or_else(|_| Err(stopped()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::mpsc;

    /// Goal: no more threads and bytes than are configured, in the order of arrival. Method: the
    /// first of three bodies is held up; which of the others begin?
    #[tokio::test]
    async fn bodies_become_tokens_within_the_limits_or_wait() {
        for (threads, bytes, expected) in
            [(3, 4 << 20, 3), (2, 4 << 20, 2), (1, 4 << 20, 1), (3, 2 << 20, 2), (3, 1 << 10, 1)]
        {
            let config =
                Http { max_parsing_threads: threads, max_parsing_bytes: bytes, ..Http::default() };
            let parsing = Parsing::new(&config);
            let (begun, begins) = mpsc::channel();
            let (go_on, waits) = mpsc::channel::<()>();
            let waits = Arc::new(std::sync::Mutex::new(waits));
            let body = |number: u32| {
                let (begun, waits) = (begun.clone(), Arc::clone(&waits));
                let parse = move || {
                    begun.send(number).unwrap();
                    waits.lock().unwrap().recv().unwrap();
                    Ok(number)
                };
                parsing.run((1 << 20, false), parse)
            };
            let mut all = Box::pin(futures::future::join_all((0..3).map(body)));
            assert!(all.as_mut().now_or_never().is_none());
            let mut first: Vec<_> = begins.iter().take(expected).collect();
            first.sort_unstable();
            assert_eq!(first, (0..expected as u32).collect::<Vec<_>>());
            // Nobody else has a permit to begin with; who needs none goes on.
            assert_eq!(parsing.run((MAX_QUICK_BYTES, false), || Ok(9)).await.unwrap(), 9);
            assert!(parsing.run((9, true), || Ok(9)).now_or_never().is_none());
            assert!(all.as_mut().now_or_never().is_none() && begins.try_recv().is_err());
            (0..3).for_each(|_| go_on.send(()).unwrap());
            let done: Vec<_> = all.await.into_iter().map(Result::unwrap).collect();
            assert_eq!(done, [0, 1, 2]);
        }
    }

    #[tokio::test]
    async fn a_body_that_panics_gives_its_place_back() {
        let config = Http { max_parsing_threads: 1, ..Http::default() };
        let parsing = Parsing::new(&config);
        let error = parsing.run::<()>((9, true), || panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.status, 500);
        assert_eq!(parsing.run((9, true), || Ok(5)).await.unwrap(), 5);
    }
}
