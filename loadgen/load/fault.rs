//! Faults that a run injects (`--fault kill:pid=71@10s`), and what broke by them and for how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::numbers::{parse_time, time};
use crate::report::result::FaultOutcome;

/// What is done to a server, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// A signal to a process, or a command.
    pub deed: Deed,
    /// When, since the run's start (its warm-up's, if it has one).
    pub at: Duration,
    written: String,
}

/// What is done to a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// A signal to the process with this id.
    Signal(Signal, i32),
    /// A command for the shell.
    Command(String),
}

/// The signals that are faults, or end one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signal {
    /// SIGKILL: the process is gone.
    Kill,
    /// SIGSTOP: it is frozen, its connections stay.
    Stop,
    /// SIGCONT: it goes on.
    Cont,
}

const FORMS: &str = "use kill:pid=71@10s, stop:pid=71@10s, cont:pid=71@12s or \
                     command:'systemctl restart x'@5s";

impl FromStr for Fault {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        let wrong = |what: String| format!("{written:?} is no fault: {what}; {FORMS}");
        let (deed, at) =
            written.rsplit_once('@').ok_or_else(|| wrong("it says no time after an @".into()))?;
        let at = parse_time(at).map_err(wrong)?;
        let (name, what) =
            deed.split_once(':').ok_or_else(|| wrong(format!("{deed:?} says not to what")))?;
        let deed = match name {
            "kill" => Deed::Signal(Signal::Kill, pid(what).map_err(wrong)?),
            "stop" => Deed::Signal(Signal::Stop, pid(what).map_err(wrong)?),
            "cont" => Deed::Signal(Signal::Cont, pid(what).map_err(wrong)?),
            "command" => {
                let unquoted = what.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let command = unquoted.filter(|inner| !inner.contains('\'')).unwrap_or(what);
                if command.trim().is_empty() {
                    return Err(wrong("the command is empty".into()));
                }
                Deed::Command(command.to_string())
            }
            _ => return Err(wrong(format!("{name:?} is none of kill, stop, cont and command"))),
        };
        Ok(Self { deed, at, written: written.to_string() })
    }
}

/// Zero and negative numbers would mean groups of processes.
fn pid(what: &str) -> Result<i32, String> {
    let number = what.strip_prefix("pid=").ok_or_else(|| format!("{what:?} names no pid="))?;
    let pid = number.parse().ok().filter(|&pid| pid > 0);
    pid.ok_or_else(|| format!("{number:?} is no process id"))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Watches what comes of the requests of a run, and keeps what it says about the run's faults.
///
/// All times are since the run's start; events come in the order of time.
#[derive(Clone, Debug)]
pub(crate) struct FaultWatch {
    faults: Vec<Watched>,
    num_running: u64,
    /// Nothing is in flight, and the last that was has been answered whole.
    is_idle: bool,
    /// Since when nothing has come although something should.
    silent_since: Duration,
}

#[derive(Clone, Debug)]
struct Watched {
    outcome: FaultOutcome,
    at: Option<Duration>,
}

impl FaultWatch {
    /// Watches for the effects of these, none of which has been injected.
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let watched = |fault: &Fault| Watched {
            outcome: FaultOutcome { fault: fault.to_string(), ..FaultOutcome::default() },
            at: None,
        };
        let faults = faults.iter().map(watched).collect();
        Self { faults, num_running: 0, is_idle: true, silent_since: Duration::ZERO }
    }

    /// Fault number `index` of the list was injected.
    pub(crate) fn injected(&mut self, index: usize, at: Duration) {
        if let Some(fault) = self.faults.get_mut(index) {
            fault.at = Some(at);
            fault.outcome.at = Some(at.as_secs_f64());
        }
    }

    /// It could not be injected, or did not go well.
    pub(crate) fn went_wrong(&mut self, index: usize, error: String) {
        if let Some(fault) = self.faults.get_mut(index) {
            fault.outcome.error = Some(error);
        }
    }

    pub(crate) fn sent(&mut self, at: Duration) {
        if std::mem::take(&mut self.is_idle) {
            self.silent_since = at;
        }
        self.num_running += 1;
    }

    /// A token, or a piece of text, of a request that was sent at `sent` has come.
    pub(crate) fn token(&mut self, sent: Duration, at: Duration) {
        self.silent_until(at);
        self.silent_since = at;
        let waiting = self.faults.iter_mut().filter(|fault| fault.outcome.recovered.is_none());
        for fault in waiting {
            if let Some(injected) = fault.at.filter(|&injected| sent >= injected) {
                fault.outcome.recovered = Some(since(injected, at));
            }
        }
    }

    /// A request has been answered whole.
    pub(crate) fn completed(&mut self, at: Duration) {
        self.num_running = self.num_running.saturating_sub(1);
        if self.num_running == 0 {
            self.silent_until(at);
            self.is_idle = true;
        }
    }

    /// A request has failed. Where each is refused at once, nobody waits, but it is silent.
    pub(crate) fn failed(&mut self, at: Duration) {
        self.num_running = self.num_running.saturating_sub(1);
        let latest = self.faults.iter_mut().filter(|fault| fault.at.is_some_and(|from| from <= at));
        let Some(fault) = latest.max_by_key(|fault| fault.at) else { return };
        let after = fault.at.map(|injected| since(injected, at));
        fault.outcome.failed += 1;
        fault.outcome.first_failure = fault.outcome.first_failure.or(after);
        fault.outcome.last_failure = after;
    }

    /// The run has ended; what is still in flight won't be answered.
    pub(crate) fn ended(&mut self, at: Duration) {
        if !std::mem::replace(&mut self.is_idle, true) {
            self.silent_until(at);
        }
        self.num_running = 0;
    }

    /// What became of the faults so far.
    pub(crate) fn outcomes(&self) -> Vec<FaultOutcome> {
        self.faults.iter().map(|fault| fault.outcome.clone()).collect()
    }

    /// Counts the silence for each fault that had come when it began, or came in it, and was not
    /// followed by another by then.
    fn silent_until(&mut self, at: Duration) {
        for index in 0..self.faults.len() {
            let Some(injected) = self.faults[index].at else { continue };
            let from = self.silent_since.max(injected);
            let mut times = self.faults.iter().filter_map(|fault| fault.at);
            let is_followed = times.any(|next| next > injected && next <= from);
            if !is_followed && from <= at {
                let silence = since(from, at);
                let longest = &mut self.faults[index].outcome.longest_silence;
                *longest = Some(longest.map_or(silence, |longest| longest.max(silence)));
            }
        }
    }
}

/// What became of a fault, on one line.
pub fn sentence(outcome: &FaultOutcome) -> String {
    let FaultOutcome { at, error, failed, first_failure, last_failure, .. } = outcome;
    let mut said = Vec::new();
    match (at, error) {
        (Some(at), _) => said.push(format!("at {at:.2} s")),
        (None, None) => said.push("not injected: the run ended before".to_string()),
        (None, Some(_)) => said.push("not injected".to_string()),
    }
    said.extend(error.clone());
    if at.is_none() {
        return said.join(": ");
    }
    let seconds = |value: &Option<f64>| value.map_or(String::new(), |s| time(s * 1e3));
    match failed {
        0 => said.push("no request failed".to_string()),
        num => said.push(format!(
            "{num} requests failed, from {} to {} after it",
            seconds(first_failure),
            seconds(last_failure),
        )),
    }
    said.push(match outcome.recovered {
        Some(_) => {
            format!("first token of a later request after {}", seconds(&outcome.recovered))
        }
        None => "no later request got a token".to_string(),
    });
    if outcome.longest_silence.is_some() {
        said.push(format!("longest silence {}", seconds(&outcome.longest_silence)));
    }
    said.join(", ")
}

fn since(injected: Duration, at: Duration) -> f64 {
    at.saturating_sub(injected).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn faults(written: &[&str]) -> FaultWatch {
        let faults: Vec<Fault> = written.iter().map(|fault| fault.parse().unwrap()).collect();
        FaultWatch::new(&faults)
    }

    #[test]
    fn a_fault_is_read_as_it_is_written() {
        for (written, deed, at) in [
            ("kill:pid=71@10s", Deed::Signal(Signal::Kill, 71), ms(10_000)),
            ("stop:pid=1@500ms", Deed::Signal(Signal::Stop, 1), ms(500)),
            ("cont:pid=71@2m", Deed::Signal(Signal::Cont, 71), ms(120_000)),
            ("command:'a b@c'@1.5s", Deed::Command("a b@c".into()), ms(1500)),
            ("command:echo 'a' 'b'@0s", Deed::Command("echo 'a' 'b'".into()), ms(0)),
            ("command:'a' 'b'@0s", Deed::Command("'a' 'b'".into()), ms(0)),
        ] {
            let fault: Fault = written.parse().unwrap();
            assert_eq!((&fault.deed, fault.at), (&deed, at), "{written}");
            assert_eq!(fault.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_would_be_one() {
        for (written, said) in [
            ("", "says no time"),
            ("kill:pid=71", "says no time"),
            ("kill:pid=71@", "\"\" is no time"),
            ("kill:pid=71@soon", "\"soon\" is no time"),
            ("kill:pid=71@-1s", "\"-1s\" is no time"),
            ("kill@1s", "says not to what"),
            ("kill:71@1s", "names no pid="),
            ("kill:pid=0@1s", "\"0\" is no process id"),
            ("kill:pid=-1@1s", "\"-1\" is no process id"),
            ("kill:pid=99999999999@1s", "\"99999999999\" is no process id"),
            ("hang:pid=71@1s", "\"hang\" is none of kill, stop, cont and command"),
            ("command:''@1s", "the command is empty"),
        ] {
            let error = written.parse::<Fault>().unwrap_err();
            assert!(error.contains(said) && error.contains("kill:pid=71@10s"), "{error}");
        }
    }

    #[test]
    fn what_broke_and_for_how_long() {
        let mut watch = faults(&["kill:pid=71@1s"]);
        watch.sent(ms(100));
        watch.sent(ms(200));
        watch.token(ms(100), ms(900));
        watch.failed(ms(950));
        watch.injected(0, ms(1000));
        // A token that was under way, of a request from before: no recovery.
        watch.token(ms(200), ms(1010));
        watch.failed(ms(1100));
        // Being refused doesn't end a silence.
        watch.sent(ms(3000));
        watch.failed(ms(3200));
        watch.sent(ms(3300));
        watch.token(ms(3300), ms(3700));
        watch.completed(ms(3800));
        // Nobody asks: that is no silence.
        watch.sent(ms(8000));
        watch.token(ms(8000), ms(8010));
        watch.completed(ms(8020));
        watch.ended(ms(20_000));
        let outcome = &watch.outcomes()[0];
        let expected = FaultOutcome {
            fault: "kill:pid=71@1s".into(),
            at: Some(1.0),
            error: None,
            failed: 2,
            first_failure: Some(0.1),
            last_failure: Some(2.2),
            recovered: Some(2.7),
            longest_silence: Some(2.69),
        };
        assert_eq!(*outcome, expected);
        let said = "at 1.00 s, 2 requests failed, from 100 ms to 2.20 s after it, \
                    first token of a later request after 2.70 s, longest silence 2.69 s";
        assert_eq!(sentence(outcome), said);
    }

    #[test]
    fn of_two_faults_each_has_its_own_failures_and_silence() {
        let mut watch = faults(&["stop:pid=71@1s", "cont:pid=71@3s"]);
        watch.sent(ms(500));
        watch.token(ms(500), ms(900));
        watch.injected(0, ms(1000));
        watch.sent(ms(1500));
        watch.failed(ms(2500));
        watch.injected(1, ms(3000));
        watch.token(ms(1500), ms(3250));
        watch.failed(ms(3500));
        watch.sent(ms(4000));
        watch.token(ms(4000), ms(4125));
        watch.ended(ms(5000));
        let outcomes = watch.outcomes();
        let [stop, cont] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!((stop.failed, stop.first_failure), (1, Some(1.5)));
        assert_eq!((stop.longest_silence, stop.recovered), (Some(2.25), Some(2.25)));
        assert_eq!((cont.failed, cont.last_failure), (1, Some(0.5)));
        assert_eq!(cont.recovered, Some(1.125));
        // The request that is still in flight at the end is being waited for.
        assert_eq!(cont.longest_silence, Some(0.875));
    }

    #[test]
    fn a_fault_after_the_run_breaks_nothing() {
        let mut watch = faults(&["kill:pid=71@1s"]);
        watch.sent(ms(0));
        watch.failed(ms(10));
        watch.ended(ms(20));
        let outcome = &watch.outcomes()[0];
        assert_eq!((outcome.at, outcome.failed, outcome.longest_silence), (None, 0, None));
        assert_eq!(sentence(outcome), "not injected: the run ended before");
    }

    #[test]
    fn a_server_that_stays_silent_never_recovers() {
        let mut watch = faults(&["kill:pid=71@1s"]);
        watch.sent(ms(0));
        watch.injected(0, ms(1000));
        watch.went_wrong(0, "it would not".into());
        watch.ended(ms(31_000));
        let outcome = &watch.outcomes()[0];
        assert_eq!((outcome.recovered, outcome.longest_silence), (None, Some(30.0)));
        let said = "at 1.00 s, it would not, no request failed, no later request got a token, \
                    longest silence 30.00 s";
        assert_eq!(sentence(outcome), said);
    }
}
