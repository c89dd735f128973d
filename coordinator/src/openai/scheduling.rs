//! What a body says of when its answer is wanted: priority, deadline, exactness.

use std::time::{Duration, Instant};

use super::fields::wrong;
use super::{ApiError, Fields};
use crate::keys::Access;
use crate::request::Priority;

/// A day: whoever waits longer has no deadline.
const MAX_TIME_MS: u32 = 86_400_000;

/// `service_tier` by its names, those of OpenAI's API and ours.
const TIERS: [(&str, Priority); 8] = [
    ("realtime", Priority::Realtime),
    ("priority", Priority::Interactive),
    ("interactive", Priority::Interactive),
    ("standard", Priority::Standard),
    ("default", Priority::Standard),
    ("auto", Priority::Standard),
    ("flex", Priority::Offline),
    ("batch", Priority::Offline),
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) require_exact: bool,
}

impl Scheduling {
    /// Takes the fields that say so.
    pub(crate) fn take(fields: &mut Fields, access: &Access) -> Result<Self, ApiError> {
        let priority = priority(fields, access.max_priority)?;
        let deadline = match fields.u32("max_time_ms")? {
            None => None,
            Some(millis) => Some(deadline("max_time_ms", millis)?),
        };
        Ok(Self { priority, deadline, require_exact: fields.bool("require_exact")? })
    }
}

/// So many milliseconds from now.
///
/// # Errors
/// When they are none, or more than a day.
pub(crate) fn deadline(field: &str, millis: u32) -> Result<Instant, ApiError> {
    if !(1..=MAX_TIME_MS).contains(&millis) {
        let message = format!("{field} must be from 1 to {MAX_TIME_MS} milliseconds");
        return Err(ApiError::invalid(field, message));
    }
    Ok(Instant::now() + Duration::from_millis(millis.into()))
}

/// By name, or by vLLM's number, of which the lower goes first: 0 is where nothing is said. Who
/// leaves it to us gets no more than `most`, who asks for more is told so.
fn priority(fields: &mut Fields, most: Priority) -> Result<Priority, ApiError> {
    let tier = fields.string("service_tier")?;
    let number = fields.take("priority");
    let named = match &tier {
        None => None,
        Some(name) => match TIERS.iter().find(|(known, _)| known == name) {
            Some((_, priority)) => Some(*priority),
            None => {
                let names: Vec<_> = TIERS.iter().map(|(name, _)| *name).collect();
                let message = format!("service_tier must be one of {}", names.join(", "));
                return Err(ApiError::invalid("service_tier", message));
            }
        },
    };
    let ours = Priority::default().min(most);
    let Some(value) = number else {
        return match named {
            Some(_) if tier.as_deref() == Some("auto") => Ok(ours),
            Some(priority) => allowed("service_tier", priority, most),
            None => Ok(ours),
        };
    };
    let number = value.as_i64().ok_or_else(|| wrong("priority", "a whole number", &value))?;
    if named.is_some() {
        let message = "give service_tier or priority, not both";
        return Err(ApiError::invalid("priority", message));
    }
    let priority = match number {
        ..=-10 => Priority::Realtime,
        -9..=-1 => Priority::Interactive,
        0 => ours,
        1.. => Priority::Offline,
    };
    allowed("priority", priority, most)
}

fn allowed(field: &str, priority: Priority, most: Priority) -> Result<Priority, ApiError> {
    if priority <= most {
        return Ok(priority);
    }
    let tiers: Vec<_> =
        TIERS.iter().filter(|(_, tier)| *tier <= most).map(|(name, _)| *name).collect();
    let message = format!(
        "{field}: this API key may ask for priority {} at most, not for {}; leave it out, or send \
         a service_tier among {}",
        most.name(),
        priority.name(),
        tiers.join(", ")
    );
    Err(ApiError::invalid(field, message).status(403).code("priority_not_allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn take(body: &Value) -> Result<Scheduling, String> {
        take_by(&Access::anybody(), body).map_err(|error| error.message)
    }

    fn take_by(access: &Access, body: &Value) -> Result<Scheduling, ApiError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        Scheduling::take(&mut fields, access)
    }

    #[test]
    fn a_key_goes_no_higher_than_it_may() {
        let by = |most| {
            let mut access = Access::anybody();
            access.max_priority = most;
            access
        };
        for (most, body, expected) in [
            (Priority::Standard, json!({"service_tier": "interactive"}), None),
            (Priority::Standard, json!({"priority": -1}), None),
            (Priority::Standard, json!({"service_tier": "default"}), Some(Priority::Standard)),
            (Priority::Interactive, json!({"priority": -10}), None),
            (Priority::Interactive, json!({"priority": -9}), Some(Priority::Interactive)),
            // Who leaves it to the server gets what there is.
            (Priority::Offline, json!({}), Some(Priority::Offline)),
            (Priority::Offline, json!({"service_tier": "auto"}), Some(Priority::Offline)),
            (Priority::Offline, json!({"priority": 0}), Some(Priority::Offline)),
            (Priority::Offline, json!({"service_tier": "standard"}), None),
        ] {
            match (take_by(&by(most), &body), expected) {
                (Ok(taken), Some(expected)) => assert_eq!(taken.priority, expected, "{body}"),
                (Err(error), None) => {
                    assert_eq!((error.status, error.code), (403, Some("priority_not_allowed")));
                    let accepts = format!("priority {} at most", most.name());
                    assert!(error.message.contains(&accepts), "{error}");
                    assert!(error.message.ends_with("flex, batch"), "{error}");
                }
                (taken, _) => panic!("{body}: {taken:?}"),
            }
        }
    }

    #[test]
    fn a_tier_or_a_number_says_the_priority() {
        for (body, expected) in [
            (json!({}), Priority::Standard),
            (json!({"service_tier": "auto"}), Priority::Standard),
            (json!({"service_tier": "flex"}), Priority::Offline),
            (json!({"service_tier": "batch"}), Priority::Offline),
            (json!({"service_tier": "interactive"}), Priority::Interactive),
            (json!({"service_tier": "realtime"}), Priority::Realtime),
            (json!({"priority": 0}), Priority::Standard),
            (json!({"priority": 3}), Priority::Offline),
            (json!({"priority": -1}), Priority::Interactive),
            (json!({"priority": -100}), Priority::Realtime),
        ] {
            assert_eq!(take(&body).unwrap().priority, expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_priority_or_deadline_is_refused_with_what_would_be() {
        for (body, expected) in [
            (json!({"service_tier": "gold"}), "must be one of realtime, priority"),
            (json!({"service_tier": 1}), "a string"),
            (json!({"priority": 1.5}), "a whole number"),
            (json!({"priority": "high"}), "a whole number"),
            (json!({"priority": 1, "service_tier": "flex"}), "not both"),
            (json!({"max_time_ms": 0}), "from 1 to 86400000"),
            (json!({"max_time_ms": -5}), "a whole number from 0 on"),
            (json!({"max_time_ms": 86_400_001}), "from 1 to 86400000"),
            (json!({"require_exact": "yes"}), "true or false"),
        ] {
            let error = take(&body).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
