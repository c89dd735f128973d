//! What happened in a run, and what must hold of it.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::SessionId;

use super::scenario::{Damage, Fault, Host, NUM_NODES, Scenario, config};

/// Two processes that talk over connections which end together: a session of a node with its
/// coordinator, or a node's data connection to its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bond {
    /// Who dialled, and whom.
    pub(super) hosts: [Host; 2],
    /// The how many-th of these two.
    pub(super) number: u32,
}

/// What a process notes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// It began here.
    Began(Bond),
    /// It is over here.
    Ended(Bond, String),
    /// A frame has arrived.
    Frame(Bond, u64),
    /// A wait is over; whether it gave what was waited for.
    Waited { what: &'static str, took: Duration, well: bool },
    /// What must never happen.
    Wrong(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) at: Duration,
    pub(super) host: Host,
    pub(super) event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} {:<11} ", self.at.as_secs_f64(), self.host.name())?;
        let bond = |bond: &Bond| {
            let [from, to] = bond.hosts.map(Host::name);
            format!("{from} -> {to} #{}", bond.number)
        };
        match &self.event {
            Event::Began(it) => write!(f, "began    {}", bond(it)),
            Event::Ended(it, cause) => write!(f, "ended    {}: {cause}", bond(it)),
            Event::Frame(it, step) => write!(f, "frame    {} {step}", bond(it)),
            Event::Waited { what, took, well } => {
                write!(f, "waited   for {what}: {} ms, {well}", took.as_millis())
            }
            Event::Wrong(what) => write!(f, "WRONG    {what}"),
        }
    }
}

#[derive(Debug, Default)]
struct Notes {
    entries: Vec<Entry>,
    bonds: BTreeMap<u64, Bond>,
    counts: BTreeMap<[Host; 2], u32>,
}

/// Written by every process of a run, which are all in one thread; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal(Arc<Mutex<Notes>>);

impl Journal {
    pub(super) fn note(&self, host: Host, event: Event) {
        // What is dropped after a run is no part of it.
        let Some(at) = turmoil::sim_elapsed() else { return };
        self.with(|notes| notes.entries.push(Entry { at, host, event }));
    }

    /// Both sides know it by what they make of its keys.
    pub(super) fn bond(&self, session: SessionId, hosts: [Host; 2]) -> Bond {
        self.with(|notes| {
            *notes.bonds.entry(session.0).or_insert_with(|| {
                let count = notes.counts.entry(hosts).or_default();
                *count += 1;
                Bond { hosts, number: *count }
            })
        })
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.with(|notes| notes.entries.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Notes) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Equal runs have equal hashes.
pub(super) fn hash(entries: &[Entry]) -> u64 {
    let mut hasher = DefaultHasher::new();
    entries.hash(&mut hasher);
    hasher.finish()
}

/// QUIC waits for three probe timeouts at least, whatever it is told: where packets are lost while
/// a connection begins, its first guesses of the round trip make that longer. Up to 3.6 s were
/// seen.
const LOSSY: Duration = Duration::from_millis(2500);

/// What a machine may be late by: packets under way, and timers that count from their arrival.
const GRACE: Duration = Duration::from_millis(400);

/// Frames move all the time: a direction that was quiet for so long hangs.
const QUIET: Duration = Duration::from_millis(2500);

/// One side of a bond.
#[derive(Clone, Copy, Debug)]
struct Side {
    began: Duration,
    ended: Option<Duration>,
    last_frame: Duration,
}

impl Side {
    fn stands(&self, at: Duration) -> bool {
        self.began <= at && self.ended.is_none_or(|ended| ended > at)
    }
}

/// What a run did wrong, if anything.
pub(super) fn check(scenario: &Scenario, entries: &[Entry]) -> Result<(), String> {
    let sides = sides(entries)?;
    for (bond, [near, far]) in &sides {
        ends_on_both_sides(scenario, *bond, *near, *far)?;
    }
    for fault in &scenario.faults {
        long_silence_is_a_death(scenario, fault, &sides)?;
    }
    if scenario.harms_nobody() {
        let ended = entries.iter().find(|entry| matches!(entry.event, Event::Ended(..)));
        if let Some(ended) = ended {
            return Err(format!("nothing was cut for long, and yet:\n{ended}"));
        }
    }
    // Everybody is there, talks, and hears.
    for number in 0..NUM_NODES {
        let stands = sides.iter().any(|(bond, sides)| {
            bond.hosts == [Host::Node(number), Host::Coordinator]
                && sides.iter().all(|side| {
                    side.is_some_and(|it| {
                        it.ended.is_none() && it.last_frame + QUIET > scenario.until
                    })
                })
        });
        if !stands {
            return Err(format!("node-{number} has no session through which frames go at the end"));
        }
    }
    Ok(())
}

/// What the entries say of each side, the dialling one first; and whatever one entry alone shows.
fn sides(entries: &[Entry]) -> Result<BTreeMap<Bond, [Option<Side>; 2]>, String> {
    let mut sides: BTreeMap<Bond, [Option<Side>; 2]> = BTreeMap::new();
    let mut next: BTreeMap<(Bond, Host), u64> = BTreeMap::new();
    let limit = Duration::from_millis(2 * config().connect_timeout_ms) + GRACE;
    for Entry { at, host, event } in entries {
        let place = |bond: &Bond| usize::from(bond.hosts[0] != *host);
        match event {
            Event::Began(bond) => {
                let side = Side { began: *at, ended: None, last_frame: *at };
                sides.entry(*bond).or_default()[place(bond)] = Some(side);
            }
            Event::Ended(bond, _) => {
                if let Some(side) = &mut sides.entry(*bond).or_default()[place(bond)] {
                    side.ended = Some(*at);
                }
            }
            Event::Frame(bond, step) => {
                let expected = next.entry((*bond, *host)).or_default();
                if step != expected {
                    return Err(format!("frame {step} of {bond:?} came in place of {expected}"));
                }
                *expected += 1;
                if let Some(side) = &mut sides.entry(*bond).or_default()[place(bond)] {
                    side.last_frame = *at;
                }
            }
            Event::Waited { what, took, .. } if *took > limit => {
                return Err(format!("waited {took:?} for {what}, over its limit"));
            }
            Event::Waited { .. } => {}
            Event::Wrong(what) => return Err(what.clone()),
        }
    }
    Ok(sides)
}

/// Whatever ends one side of a bond, the other hears of it or of nothing, which ends it too.
fn ends_on_both_sides(
    scenario: &Scenario,
    bond: Bond,
    near: Option<Side>,
    far: Option<Side>,
) -> Result<(), String> {
    let limit = silence(scenario) + GRACE;
    for (one, other) in [(near, far), (far, near)] {
        let Some(other) = other else { continue };
        // Where one side never began, the other can't stand for longer than either takes.
        let gone = match one {
            Some(one) => one.ended,
            None => Some(other.began + Duration::from_millis(config().connect_timeout_ms)),
        };
        let Some(gone) = gone else { continue };
        let deadline = gone.max(other.began) + limit;
        if deadline < scenario.until && other.ended.is_none_or(|at| at > deadline) {
            return Err(format!("{bond:?} was over at {gone:?}, and not here: {other:?}"));
        }
    }
    Ok(())
}

/// After what length of silence a connection is over: the side that gives signs of life counts from
/// the first that it gave since. Where its own packets got lost for a while before, that first one
/// waits for a probe timeout which has doubled up to the time that the other took to give up.
fn silence(scenario: &Scenario) -> Duration {
    let config = config();
    let told = Duration::from_millis(config.idle_timeout_ms + config.keep_alive_ms);
    let one_way = |fault: &Fault| matches!(fault.damage, Damage::OneWay(..)) && !fault.is_short();
    let probe = if scenario.faults.iter().any(one_way) { told } else { Duration::ZERO };
    if scenario.weather.loss > 0.0 { told + probe.max(LOSSY) } else { told + probe }
}

/// Two who can't hear each other for long enough don't believe in each other for longer.
fn long_silence_is_a_death(
    scenario: &Scenario,
    fault: &Fault,
    sides: &BTreeMap<Bond, [Option<Side>; 2]>,
) -> Result<(), String> {
    let limit = match fault.damage {
        Damage::Cut(..) => silence(scenario) + GRACE,
        // The side that hears on does so until the other has given up.
        Damage::OneWay(..) => 2 * silence(scenario) + GRACE,
        Damage::Crash(_) => return Ok(()),
    };
    if fault.until - fault.at <= limit {
        return Ok(());
    }
    for (bond, sides) in sides {
        if !fault.damage.parts(bond.hosts[0], bond.hosts[1]) {
            continue;
        }
        for (side, host) in sides.iter().zip(bond.hosts) {
            let stood = |side: &Side| side.stands(fault.at) && side.stands(fault.at + limit);
            if let Some(side) = side.filter(stood) {
                return Err(format!("{bond:?} survived {fault:?} at {host:?}: {side:?}"));
            }
        }
    }
    Ok(())
}
