//! What happens in a run: how the network is, and what breaks when, all of it from a seed.

use std::time::Duration;

use protocol::config::Transport;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Nodes of a cluster.
pub(super) const NUM_NODES: usize = 2;

/// A process of the cluster; nodes count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Host {
    Coordinator,
    Node(usize),
}

impl Host {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Coordinator].into_iter().chain((0..NUM_NODES).map(Self::Node))
    }

    /// Its name in the simulated network.
    pub(super) fn name(self) -> String {
        match self {
            Self::Coordinator => "coordinator".into(),
            Self::Node(number) => format!("node-{number}"),
        }
    }
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) loss: f64,
    pub(super) repeats: f64,
    /// Longer ones don't get through.
    pub(super) max_packet_bytes: usize,
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing passes between the two.
    Cut(Host, Host),
    /// Nothing passes from the first to the second.
    OneWay(Host, Host),
    /// It is gone without a word, and started again.
    Crash(Host),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) damage: Damage,
    pub(super) at: Duration,
    pub(super) until: Duration,
}

impl Fault {
    /// Whether a connection survives it, if nothing else is lost.
    pub(super) fn is_short(&self) -> bool {
        self.until - self.at <= Duration::from_millis(SHORT[1])
    }
}

/// A run, decided.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) weather: Weather,
    pub(super) latency: [Duration; 2],
    pub(super) faults: Vec<Fault>,
    pub(super) until: Duration,
}

/// The settings of every run: dialling gives up sooner than in production, since all of them end
/// with time enough for a try that hangs and one that doesn't.
pub(super) fn config() -> Transport {
    Transport { connect_timeout_ms: 2000, ..Transport::default() }
}

/// A connection survives whatever is shorter, if nothing else is lost: the sign of life that was
/// due meanwhile is repeated after twice the time at most.
const SHORT: [u64; 2] = [20, 300];

/// How long after the last fault everything stands again: a try that began before its end has
/// failed, and another has not.
const SETTLE: Duration = Duration::from_secs(9);

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Without loss a short cut must harm nobody, which is only then certain.
        let is_calm = seed.is_multiple_of(4);
        let weather = Weather {
            loss: if is_calm { 0.0 } else { [0.0, 0.01, 0.05][rng.random_range(0..3)] },
            repeats: [0.0, 0.02][rng.random_range(0..2)],
            max_packet_bytes: [1280, 1472, 9000][rng.random_range(0..3)],
        };
        let least = rng.random_range(0..10);
        let latency = [least, least + rng.random_range(1..30)].map(Duration::from_millis);
        let mut faults = Vec::new();
        let mut at = 2000;
        for _ in 0..rng.random_range(1..=3) {
            at += rng.random_range(0..1500);
            let lasts = match rng.random_range(0..3) {
                _ if is_calm => rng.random_range(SHORT[0]..=SHORT[1]),
                0 => rng.random_range(SHORT[0]..=SHORT[1]),
                1 => rng.random_range(SHORT[1]..2500),
                _ => rng.random_range(2500..5000),
            };
            let damage = Damage::draw(&mut rng, is_calm);
            let [at_, until] = [at, at + lasts].map(Duration::from_millis);
            faults.push(Fault { damage, at: at_, until });
            // Faults of a calm run don't add up; others may overlap.
            at += if is_calm { 2500 } else { rng.random_range(0..2 * lasts) };
        }
        let last = faults.iter().map(|fault| fault.until).max().unwrap_or_default();
        Self { seed, weather, latency, faults, until: last + SETTLE }
    }

    /// Whether nothing happens that could end a connection.
    pub(super) fn harms_nobody(&self) -> bool {
        self.weather.loss == 0.0
            && self
                .faults
                .iter()
                .all(|fault| !matches!(fault.damage, Damage::Crash(_)) && fault.is_short())
            && self
                .faults
                .windows(2)
                .all(|pair| pair[0].until + Duration::from_millis(2000) <= pair[1].at)
    }
}

impl Damage {
    fn draw(rng: &mut StdRng, is_calm: bool) -> Self {
        let hosts: Vec<_> = Host::all().collect();
        let one = rng.random_range(0..hosts.len());
        let other = (one + rng.random_range(1..hosts.len())) % hosts.len();
        match rng.random_range(0..5) {
            0 if !is_calm => Self::Crash(Host::Node(rng.random_range(0..NUM_NODES))),
            1 | 2 => Self::OneWay(hosts[one], hosts[other]),
            _ => Self::Cut(hosts[one], hosts[other]),
        }
    }

    /// Whether it keeps the two from talking, in one direction at least.
    pub(super) fn parts(self, one: Host, other: Host) -> bool {
        match self {
            Self::Cut(a, b) | Self::OneWay(a, b) => [(a, b), (b, a)].contains(&(one, other)),
            Self::Crash(host) => host == one || host == other,
        }
    }
}
