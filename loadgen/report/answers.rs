//! Whether the answers of a run were right, in words. No throughput is shown without them.

use super::result::RunResult;
use crate::numbers::grouped;

/// What is known of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing compared them.
    NotVerified,
    /// All that were compared are as the reference says.
    Verified,
    /// Streams broke; all that came until then is as the reference says.
    Broken,
    /// Some are not as the reference says.
    Wrong,
}

pub(crate) fn verdict(run: &RunResult) -> Verdict {
    let Some(found) = run.verification.as_ref().filter(|found| found.checked > 0) else {
        return Verdict::NotVerified;
    };
    let not_equal = found.differing_tokens + found.differing_ends;
    match found.checked - found.identical.min(found.checked) {
        0 if found.broken_streams == 0 => Verdict::Verified,
        odd if not_equal == 0 && odd <= found.broken_streams => Verdict::Broken,
        _ => Verdict::Wrong,
    }
}

/// A few words for a table.
pub fn short(run: &RunResult) -> String {
    let found = run.verification.clone().unwrap_or_default();
    let checked = grouped(found.checked);
    match verdict(run) {
        Verdict::NotVerified => "not verified".to_string(),
        Verdict::Verified => format!("verified ({checked})"),
        Verdict::Broken => format!("{} of {checked} broken", grouped(found.broken_streams)),
        Verdict::Wrong => {
            let wrong = found.checked - found.identical.min(found.checked);
            format!("{} of {checked} wrong", grouped(wrong))
        }
    }
}

/// The verdict as a sentence, with what it rests on.
pub(crate) fn sentence(run: &RunResult) -> String {
    let Some(found) = &run.verification else {
        return "Answers not verified: nothing compared them with a reference, so the throughput \
                may count wrong ones."
            .to_string();
    };
    let by = match found.compared.as_str() {
        "" => String::new(),
        compared => format!(" by {compared}, with {} references", grouped(found.references)),
    };
    let checked = grouped(found.checked);
    match verdict(run) {
        Verdict::NotVerified => {
            "Answers not verified: none came that could be compared with a reference.".to_string()
        }
        Verdict::Verified => {
            format!("Answers verified: all {checked} that were compared{by} are identical.")
        }
        Verdict::Broken => format!(
            "{} of {checked} streams broke; all that came, compared{by}, was identical.",
            grouped(found.broken_streams),
        ),
        Verdict::Wrong => format!(
            "{} of {checked} answers are not the reference's, compared{by}: {} broken streams, \
             {} tokens that differ, {} other ends.",
            grouped(found.checked - found.identical.min(found.checked)),
            grouped(found.broken_streams),
            grouped(found.differing_tokens),
            grouped(found.differing_ends),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::result::Verification;
    use super::*;

    #[test]
    fn only_what_was_compared_is_called_verified() {
        let run = |verification| RunResult { verification, ..RunResult::default() };
        let of = |checked, identical| {
            run(Some(Verification { checked, identical, ..Verification::default() }))
        };
        let broken = Verification {
            checked: 10,
            identical: 8,
            broken_streams: 2,
            ..Verification::default()
        };
        assert_eq!(short(&run(Some(broken.clone()))), "2 of 10 broken");
        let worse = Verification { differing_tokens: 1, ..broken };
        assert_eq!(verdict(&run(Some(worse))), Verdict::Wrong);
        assert_eq!(short(&run(None)), "not verified");
        assert_eq!(verdict(&of(0, 0)), Verdict::NotVerified);
        assert_eq!(short(&of(2000, 2000)), "verified (2,000)");
        assert_eq!(short(&of(2000, 1997)), "3 of 2,000 wrong");
        assert!(sentence(&of(5, 4)).starts_with("1 of 5 answers"), "{}", sentence(&of(5, 4)));
    }
}
