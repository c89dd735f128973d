//! What happens to nodes.

use std::time::Duration;

use super::nodes::Nodes;
use crate::cluster::Cluster;
use crate::simulation::random::Random;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node of a stage is killed.
    Kill,
    /// It is frozen.
    Stop,
    /// It is frozen, or killed and started at once, and comes back about when it is given up.
    Return,
    /// Its machine's cable is pulled.
    Partition,
    /// It is killed, and while the others recover, another is.
    Second,
}

impl Fault {
    pub const ALL: [Self; 5] =
        [Self::Kill, Self::Stop, Self::Partition, Self::Return, Self::Second];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Partition => "partition",
            Self::Return => "return",
            Self::Second => "second",
        }
    }
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|it| it.name() == text);
        known.ok_or_else(|| "choose kill, stop, partition, return, second or mix".into())
    }
}

/// Lets it happen: what happened to whom.
pub async fn inflict(
    fault: Fault,
    nodes: &mut Nodes,
    cluster: &Cluster,
    random: &mut Random,
) -> String {
    let of_stages = nodes.of_stages(cluster).await;
    let stage = random.between(0, of_stages.len() as u64 - 1) as usize;
    let victim = of_stages[stage];
    let pause = |random: &mut Random, most| Duration::from_millis(random.between(0, most));
    match fault {
        Fault::Kill => nodes.kill(victim),
        Fault::Stop => nodes.stop(victim),
        Fault::Partition => nodes.cut_off(victim),
        Fault::Return if random.chance(0.5) => {
            nodes.kill(victim);
            nodes.start_again(cluster, victim);
        }
        Fault::Return => {
            nodes.stop(victim);
            tokio::time::sleep(pause(random, 3000)).await;
            nodes.go_on(victim);
        }
        Fault::Second => {
            nodes.kill(victim);
            tokio::time::sleep(pause(random, 3000)).await;
            let others = (0..nodes.len()).filter(|it| *it != victim).collect::<Vec<_>>();
            let second = random.pick(&others);
            nodes.kill(second);
            return format!("stage {stage} on node {victim}, then node {second}");
        }
    }
    format!("stage {stage} on node {victim}")
}
