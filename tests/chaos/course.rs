//! What the coordinator logs in the course of a fault, and when: where the time goes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::cluster::Cluster;

/// Whoever notices nothing within this time has nothing to notice.
const UNNOTICED: Duration = Duration::from_secs(4);

/// From the moment of a fault on.
pub struct Course {
    log: Arc<Mutex<String>>,
    start: usize,
    began: Instant,
    second_of_day: f64,
}

/// Seconds that the parts of a recovery took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Until the first pipeline counted as lost.
    pub noticed: f64,
    /// From the last that was lost until stages were placed.
    pub placed: f64,
    /// Until the pipeline served: loaded and linked.
    pub loaded: f64,
    pub num_lost: usize,
}

impl Course {
    pub fn new(cluster: &Cluster) -> Self {
        let log = Arc::clone(&cluster.process.log);
        let start = log.lock().unwrap().len();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let second_of_day = since.as_secs_f64() % 86_400.0;
        Self { log, start, began: Instant::now(), second_of_day }
    }

    /// Whether a pipeline serves again, or was never lost.
    pub fn is_over(&self) -> bool {
        let log = self.log.lock().unwrap();
        let log = &log[self.start..];
        match log.rfind(LOST) {
            Some(lost) => log.rfind(SERVES).is_some_and(|serves| serves > lost),
            None => self.began.elapsed() > UNNOTICED,
        }
    }

    /// None when nothing was lost.
    pub fn parts(&self) -> Option<Parts> {
        let log = self.log.lock().unwrap();
        let lines: Vec<_> = log[self.start..].lines().collect();
        let first = lines.iter().find(|line| line.contains(LOST))?;
        let last = lines.iter().rposition(|line| line.contains(LOST))?;
        let after = |what| lines[last..].iter().rfind(|line: &&&str| line.contains(what));
        let placed = self.time(after(PLACED)?)?;
        Some(Parts {
            noticed: self.time(first)?,
            placed: placed - self.time(lines[last])?,
            loaded: self.time(after(SERVES)?)? - placed,
            num_lost: lines.iter().filter(|line| line.contains(LOST)).count(),
        })
    }

    /// Lines about it, for whoever looks for the reason.
    pub fn lines(&self) -> String {
        let log = self.log.lock().unwrap();
        let is_ours = |line: &&str| !line.contains("request");
        log[self.start..].lines().filter(is_ours).collect::<Vec<_>>().join("\n")
    }

    /// Seconds from the fault to a line, which begins with its time.
    fn time(&self, line: &str) -> Option<f64> {
        let time = line.split_once('T')?.1.split_once('Z')?.0;
        let parts: Vec<f64> = time.split(':').map_while(|part| part.parse().ok()).collect();
        let [hours, minutes, seconds] = parts[..] else { return None };
        let at = hours * 3600.0 + minutes * 60.0 + seconds - self.second_of_day;
        Some(if at < -43_200.0 { at + 86_400.0 } else { at })
    }
}

const LOST: &str = "a pipeline is lost";
const PLACED: &str = "stage placed";
const SERVES: &str = "the pipeline serves";
