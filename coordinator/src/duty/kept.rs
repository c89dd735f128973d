//! What operators said of nodes, over restarts of the coordinator.

use protocol::NodeId;

use super::Duty;
use crate::store::{Store, StoreError};

/// Keeps what a node is there for.
///
/// # Errors
/// When it can't be written.
pub(crate) async fn keep(store: &Store, node: NodeId, duty: Duty) -> Result<(), StoreError> {
    let now = jiff::Timestamp::now().as_millisecond();
    store
        .write(move |database| {
            Box::pin(async move {
                let node = node.0.cast_signed();
                let query = match duty {
                    Duty::Active => sqlx::query("DELETE FROM duties WHERE node = ?").bind(node),
                    duty => sqlx::query("INSERT OR REPLACE INTO duties VALUES (?, ?, ?)")
                        .bind(node)
                        .bind(duty.name())
                        .bind(now),
                };
                query.execute(database).await?;
                Ok(())
            })
        })
        .await
}

/// The nodes that aren't active.
///
/// # Errors
/// When it can't be read.
pub(crate) async fn kept(store: &Store) -> Result<Vec<(NodeId, Duty)>, StoreError> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT node, duty FROM duties").fetch_all(store.reader()).await?;
    let known =
        |(node, duty): (i64, String)| Some((NodeId(node.cast_unsigned()), Duty::of(&duty)?));
    Ok(rows.into_iter().filter_map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_operator_said_outlives_the_coordinator() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(dir.path()).await.unwrap();
            for (node, duty) in [
                (u64::MAX, Duty::Cordoned),
                (7, Duty::Cordoned),
                (7, Duty::Draining),
                (8, Duty::Cordoned),
                (8, Duty::Active),
            ] {
                keep(&store, NodeId(node), duty).await.unwrap();
            }
        }
        let store = Store::open(dir.path()).await.unwrap();
        let mut kept = kept(&store).await.unwrap();
        kept.sort_by_key(|(node, _)| *node);
        assert_eq!(kept, [(NodeId(7), Duty::Draining), (NodeId(u64::MAX), Duty::Cordoned)]);
    }
}
