//! `autoglm node revoke`: a node is in the cluster no more, whether the coordinator runs or not.

use anyhow::{Result, ensure};
use clap::Args;
use jiff::Timestamp;
use protocol::NodeId;

use crate::store::Store;
use crate::whereabouts::Whereabouts;

/// Shows a node out for good.
#[derive(Args)]
pub(crate) struct Revoke {
    /// Its id: 16 hexadecimal digits, as autoglm nodes and the log tell it.
    #[arg(value_parser = node)]
    node: NodeId,
    #[command(flatten)]
    coordinator: Whereabouts,
}

impl Revoke {
    /// Does what is asked for.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) fn run(self) -> Result<()> {
        let (_, dir) = self.coordinator.find()?;
        ensure!(
            dir.join("ca.pem").exists(),
            "there is no coordinator's data in {}: name its --data-dir, or its --cluster HOST:PORT",
            dir.display()
        );
        let node = self.node;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            Store::open(&dir).await?.revoke_node(node, Timestamp::now()).await?;
            eprintln!(
                "node {node} is revoked; to use its machine again, remove its data directory"
            );
            Ok(())
        })
    }
}

fn node(text: &str) -> Result<NodeId, String> {
    let id =
        u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16 && !text.starts_with('+'));
    id.map(NodeId).ok_or_else(|| "must be 16 hexadecimal digits".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        revoke: Revoke,
    }

    #[test]
    fn a_node_is_revoked_by_its_id_where_a_coordinator_is() {
        let dir = tempfile::tempdir().unwrap();
        let run = |id: &str| {
            let dir = dir.path().to_str().unwrap();
            let line = Line::try_parse_from(["revoke", id, "--data-dir", dir]);
            let line = line.map_err(|cause| cause.to_string())?;
            line.revoke.run().map_err(|cause| format!("{cause:#}"))
        };
        let said = run("00000000000000ab").unwrap_err();
        assert!(said.contains("no coordinator's data"), "{said}");
        transport::Authority::load_or_create(dir.path()).unwrap();
        run("00000000000000ab").unwrap();
        for wrong in ["ab", "00000000000000xy", "+0000000000000ab"] {
            assert!(run(wrong).unwrap_err().contains("16 hexadecimal digits"), "{wrong}");
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let revoked = runtime.block_on(async {
            Store::open(dir.path()).await.unwrap().revoked_nodes().await.unwrap()
        });
        assert_eq!(revoked, [NodeId(0xab)].into());
    }
}
