//! Where spans go while their cost is measured: a server that takes any body and says 200.

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A running collector; dropped, it ends.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    num_bytes: Arc<AtomicU64>,
    serving: tokio::task::JoinHandle<()>,
}

impl Collector {
    /// Listens on a port of the system's choice.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let num_bytes = Arc::new(AtomicU64::new(0));
        let taken = Arc::clone(&num_bytes);
        let take = move |body: Bytes| {
            taken.fetch_add(body.len() as u64, Ordering::Relaxed);
            std::future::ready(())
        };
        let routes = Router::new().route("/v1/traces", post(take));
        // It ends with the runtime; a listener that fails shows as spans that don't arrive.
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { endpoint, num_bytes, serving })
    }

    /// For `traces.endpoint`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Bytes of spans so far.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
