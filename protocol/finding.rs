//! What `doctor` finds: both binaries say it, and each can pass on what the other said.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, worse than it could.
    Warn,
    /// It can't work.
    Fail,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, in a word or two.
    pub check: String,
    /// What was found: a sentence.
    pub found: String,
    /// The next thing to do; empty where there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// It is as it should be.
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, check, found.into(), String::new())
    }

    /// It works, and would work better after `remedy`.
    pub fn warn(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warn, check, found.into(), remedy.into())
    }

    /// It doesn't work before `remedy`.
    pub fn fail(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Fail, check, found.into(), remedy.into())
    }

    fn new(severity: Severity, check: &str, found: String, remedy: String) -> Self {
        Self { severity, check: check.to_owned(), found, remedy }
    }
}

/// One line, whatever a driver or another process said in it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |text: &str| -> String {
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
        };
        let Self { severity, check, found, remedy } = self;
        write!(f, "{severity:<5} {:<14} {}", line(check), line(found))?;
        if !remedy.is_empty() {
            write!(f, "; {}", line(remedy))?;
        }
        Ok(())
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Findings {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Whether nothing is there that can't work.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|it| it.severity < Severity::Fail)
    }
}

/// A line for each, and one that sums up.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let count = |severity| self.findings.iter().filter(|it| it.severity == severity).count();
        let [ok, warn, fail] = [Severity::Ok, Severity::Warn, Severity::Fail].map(count);
        writeln!(f, "{ok} ok, {warn} to improve, {fail} to mend")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_and_only_what_fails_is_unwell() {
        let fine = Finding::ok("clock", "0.1 s ahead");
        let slow = Finding::warn("udp buffers", "208 KiB", "run: sysctl -w x=1");
        let dead = Finding::fail("reach", "it said\n\"no\"", "ask\u{7}");
        assert_eq!(fine.to_string(), "OK    clock          0.1 s ahead");
        assert_eq!(dead.to_string(), "FAIL  reach          it said \"no\"; ask ");
        let mut all = Findings { findings: vec![fine, slow] };
        assert!(all.is_well());
        all.findings.push(dead);
        assert!(!all.is_well());
        let said = all.to_string();
        assert_eq!(said.lines().count(), 4);
        assert!(said.ends_with("1 ok, 1 to improve, 1 to mend\n"), "{said}");
    }
}
