//! Which nodes have pipelines, kept for the next start: they hold the layers then.

use std::sync::Arc;

use protocol::NodeId;
use tokio::sync::watch;
use tracing::warn;

use crate::status::Status;
use crate::store::{Store, StoreError};

/// Its name among the facts.
const PLACED: &str = "placed";

/// The nodes of the pipelines that served last, in the order of those and of their stages.
///
/// # Errors
/// When it can't be read.
pub(crate) async fn kept(store: &Store) -> Result<Vec<NodeId>, StoreError> {
    Ok(parse(&store.fact(PLACED).await?.unwrap_or_default()))
}

/// Keeps them whenever they are others, until the cluster is gone. A cluster that has lost all of
/// them is no news: they may come back.
pub(crate) async fn keep(store: Store, mut status: watch::Receiver<Arc<Status>>) {
    let mut last = None;
    while status.changed().await.is_ok() {
        let text = text(&status.borrow_and_update());
        if text.is_empty() || last.as_ref() == Some(&text) {
            continue;
        }
        if let Err(cause) = store.set_fact(PLACED, text.clone()).await {
            warn!(%cause, "where layers are is forgotten at the next start");
        }
        last = Some(text);
    }
}

fn text(status: &Status) -> String {
    let serving = status.pipelines.iter().filter(|it| it.is_ready());
    let nodes = serving.flat_map(|it| it.stages.iter().map(|stage| stage.node));
    let mut text = Vec::<String>::new();
    for node in nodes.map(|node| node.to_string()) {
        // Several stages may share one.
        if !text.contains(&node) {
            text.push(node);
        }
    }
    text.join(" ")
}

fn parse(text: &str) -> Vec<NodeId> {
    let node = |word| u64::from_str_radix(word, 16).ok().map(NodeId);
    text.split_whitespace().filter_map(node).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_nodes_that_served_last_are_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(kept(&store).await.unwrap(), []);
        let mut test = crate::cluster_tests::Test::new(|config| config.coordinator.stages = 2);
        test.join(7, 1 << 30);
        test.join(5, 1 << 30);
        test.wait(Duration::from_secs(60));
        test.load();
        let (status, seen) = watch::channel(Arc::default());
        let keeping = tokio::spawn(keep(store.clone(), seen));
        for told in [test.cluster.status(), Status::default()] {
            status.send_replace(Arc::new(told));
            tokio::task::yield_now().await;
        }
        drop(status);
        keeping.await.unwrap();
        drop(store);
        let store = Store::open(dir.path()).await.unwrap();
        let stages = &test.cluster.status().pipelines[0].stages;
        let nodes: Vec<_> = stages.iter().map(|stage| stage.node).collect();
        assert_eq!((kept(&store).await.unwrap(), nodes.len()), (nodes, 2));
        assert_eq!(parse("x 000000000000000a -1"), [NodeId(10)]);
    }
}
