//! Whether the answers of a run were right, in words. No throughput is shown without them.

use super::result::RunResult;
use crate::numbers::grouped;

/// What is known of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing compared them.
    NotVerified,
    /// All that were compared are as the reference says.
    Verified,
    /// Some are not.
    Wrong,
}

/// The verdict on a run.
pub fn verdict(run: &RunResult) -> Verdict {
    match &run.verification {
        Some(found) if found.checked > found.identical => Verdict::Wrong,
        Some(found) if found.checked > 0 => Verdict::Verified,
        _ => Verdict::NotVerified,
    }
}

/// A few words for a table.
pub fn short(run: &RunResult) -> String {
    match (&run.verification, verdict(run)) {
        (Some(found), Verdict::Verified) => format!("verified ({})", grouped(found.identical)),
        (Some(found), Verdict::Wrong) => {
            let wrong = found.checked - found.identical;
            format!("{} of {} wrong", grouped(wrong), grouped(found.checked))
        }
        _ => "not verified".to_string(),
    }
}

/// A sentence.
pub fn sentence(run: &RunResult) -> String {
    let Some(found) = &run.verification else {
        return "Answers not verified: nothing compared them with a reference, so the throughput \
                may count wrong ones."
            .to_string();
    };
    match verdict(run) {
        Verdict::NotVerified => {
            "Answers not verified: no answer could be compared with the reference.".to_string()
        }
        Verdict::Verified => format!(
            "Answers verified: all {} that were compared are the reference's, token by token.",
            grouped(found.checked),
        ),
        Verdict::Wrong => format!(
            "{} of {} answers are not the reference's: {} broken streams, {} tokens lost, {} \
             repeated, {} differing.",
            grouped(found.checked - found.identical),
            grouped(found.checked),
            grouped(found.broken_streams),
            grouped(found.lost_tokens),
            grouped(found.repeated_tokens),
            grouped(found.differing_tokens),
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
        assert_eq!(short(&run(None)), "not verified");
        assert_eq!(verdict(&of(0, 0)), Verdict::NotVerified);
        assert_eq!(short(&of(2000, 2000)), "verified (2,000)");
        assert_eq!(short(&of(2000, 1997)), "3 of 2,000 wrong");
        assert!(sentence(&of(5, 4)).starts_with("1 of 5 answers"), "{}", sentence(&of(5, 4)));
    }
}
