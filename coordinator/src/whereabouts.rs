//! Which coordinator a command means that works on its data directory, whether it runs or not.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use protocol::Address;
use protocol::config::Config;

use crate::data_dir;

/// Where a coordinator keeps what it knows, as its own flags would say it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Whereabouts {
    /// The coordinator's data directory [default: under your home directory].
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Where nodes join, as the coordinator is told it [default: 127.0.0.1:7000]; its port names
    /// the default data directory.
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub cluster: Option<Address>,
    /// The coordinator's file of the form of cluster.toml; flags win over it.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

impl Whereabouts {
    /// The coordinator's configuration, as far as these flags tell it, and its data directory.
    ///
    /// # Errors
    /// When the file can't be read, or there is no saying where the directory is.
    pub(crate) fn find(self) -> Result<(Config, PathBuf)> {
        let mut config = data_dir::config(self.config.as_deref())?;
        if let Some(dir) = self.data_dir {
            config.coordinator.data_dir = dir;
        }
        if let Some(cluster) = self.cluster {
            config.coordinator.cluster_addr = cluster;
        }
        let dir = data_dir::path(&config)?;
        Ok((config, dir))
    }
}
