//! The command by which nodes are brought and taken away: a program of the operator's, run when
//! another number of nodes is wanted. No shell reads it; what is wanted stands in its environment.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use protocol::config;
use tokio::process::Command;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::cluster::Staffing;

/// What the command is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    verb: &'static str,
    num_nodes: usize,
    num_pipelines: usize,
    // Machines of idle nodes, of which so many may go as there are too many.
    hostnames: Vec<String>,
}

impl Order {
    /// Nothing, where there are as many nodes as there are to be, or none of them could go.
    fn of(staffing: &Staffing) -> Option<Self> {
        let Staffing { num_pipelines, num_nodes, num_joined, idle } = staffing;
        let surplus = num_joined.saturating_sub(*num_nodes);
        let hostnames: Vec<_> = idle.iter().take(surplus).map(|it| it.hostname.clone()).collect();
        let verb = match surplus {
            0 if num_joined < num_nodes => "ADD",
            1.. if !hostnames.is_empty() => "REMOVE",
            _ => return None,
        };
        Some(Self { verb, num_nodes: *num_nodes, num_pipelines: *num_pipelines, hostnames })
    }
}

/// Runs the command whenever `wanted` says something that it hasn't been told yet, until that is
/// over. One that fails is run again after a pause, with what is wanted by then.
pub(crate) async fn run(config: config::Autoscaler, mut wanted: watch::Receiver<Staffing>) {
    let (mut done, mut backoff) = (None, Backoff::default());
    loop {
        let order = Order::of(&wanted.borrow_and_update());
        if order.is_none() {
            done = None;
        }
        let mut has_failed = false;
        if let Some(order) = order.filter(|order| Some(order) != done.as_ref()) {
            let Order { verb, num_nodes, num_pipelines, hostnames } = &order;
            info!(verb, num_nodes, num_pipelines, ?hostnames, "autoscaler.command runs");
            match carry_out(&config, &order).await {
                Ok(()) => {
                    backoff.reset();
                    done = Some(order);
                }
                Err(cause) => {
                    backoff.failed();
                    has_failed = true;
                    let (cause, pause) = (format!("{cause:#}"), backoff.pause());
                    warn!(cause, ?pause, "autoscaler.command has failed, it is run again");
                }
            }
        }
        if has_failed {
            tokio::time::sleep(backoff.pause()).await;
        } else if wanted.changed().await.is_err() {
            return;
        }
    }
}

async fn carry_out(config: &config::Autoscaler, order: &Order) -> Result<()> {
    let (program, arguments) = config.command.split_first().context("there is none")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("AUTOGLM_SCALE", order.verb)
        .env("AUTOGLM_NODES", order.num_nodes.to_string())
        .env("AUTOGLM_PIPELINES", order.num_pipelines.to_string())
        .env("AUTOGLM_HOSTNAMES", order.hostnames.join(" "))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("can't start {program}"))?;
    let limit = Duration::from_millis(config.command_timeout_ms);
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => match status.context("it can't be waited for")? {
            status if status.success() => Ok(()),
            status => bail!("{program} ended with {status}"),
        },
        Err(_) => bail!("{program} took longer than {limit:?} (autoscaler.command_timeout_ms)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::cluster::Idle;

    fn staffing(num_nodes: usize, num_joined: usize, idle: &[&str]) -> Staffing {
        let idle = idle.iter().map(|name| Idle { pid: 1, hostname: (*name).into() }).collect();
        Staffing { num_pipelines: num_nodes, num_nodes, num_joined, idle }
    }

    fn config(script: &str) -> config::Autoscaler {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).into();
        config::Autoscaler { command, command_timeout_ms: 5000, ..Default::default() }
    }

    #[test]
    fn nodes_are_asked_for_and_only_idle_ones_are_given_back() {
        let of = |num_nodes, num_joined, idle: &[&str]| {
            Order::of(&staffing(num_nodes, num_joined, idle)).map(|it| (it.verb, it.hostnames))
        };
        assert_eq!(of(3, 1, &[]), Some(("ADD", vec![])));
        assert_eq!(of(2, 2, &[]), None);
        assert_eq!(of(1, 3, &[]), None, "they are drained first");
        assert_eq!(of(1, 3, &["c", "b"]), Some(("REMOVE", vec!["c".into(), "b".into()])));
        assert_eq!(of(2, 3, &["c", "b"]), Some(("REMOVE", vec!["c".into()])));
        assert_eq!(of(0, 1, &["a"]), Some(("REMOVE", vec!["a".into()])));
    }

    /// Goal: the command is told each thing once, again when it failed, and never stands in the
    /// way. Method: a script that notes what it is told; its second run fails, its fourth hangs.
    #[tokio::test]
    async fn the_command_is_told_once_and_again_when_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("notes");
        let script = format!(
            "echo \"$AUTOGLM_SCALE $AUTOGLM_NODES $AUTOGLM_PIPELINES $AUTOGLM_HOSTNAMES\" >>{0}; \
             case $(wc -l <{0}) in 2) exit 3;; 4) exec sleep 600;; esac",
            notes.display()
        );
        let noted = async |expected: &[&str]| {
            let read = || std::fs::read_to_string(&notes).unwrap_or_default();
            let all_there = async {
                while read().lines().count() < expected.len() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(60), all_there).await;
            // What would come too often comes at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(read().lines().collect::<Vec<_>>(), expected);
        };
        let mut config = config(&script);
        let (want, wanted) = watch::channel(Staffing::default());
        config.command_timeout_ms = 200;
        let running = tokio::spawn(run(config, wanted));
        want.send(staffing(2, 1, &[])).unwrap();
        noted(&["ADD 2 2 "]).await;
        // Others have joined: it is under way.
        want.send(Staffing { num_joined: 0, ..staffing(2, 1, &[]) }).unwrap();
        want.send(staffing(2, 2, &[])).unwrap();
        noted(&["ADD 2 2 "]).await;
        want.send(staffing(1, 2, &["b"])).unwrap();
        let retried = ["ADD 2 2 ", "REMOVE 1 1 b", "REMOVE 1 1 b"];
        noted(&retried).await;
        want.send(staffing(4, 1, &[])).unwrap();
        noted(&[&retried[..], &["ADD 4 4 ", "ADD 4 4 "]].concat()).await;
        drop(want);
        tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_named() {
        let mut config = config("");
        config.command = vec!["/there/is/none".into()];
        let order = Order::of(&staffing(1, 0, &[])).unwrap();
        let said = format!("{:#}", carry_out(&config, &order).await.unwrap_err());
        assert!(said.starts_with("can't start /there/is/none: No such file"), "{said}");
    }
}
