//! Who asks what, and when: drawn from a seed, or read from a trace.

use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coordinator::request::{Priority, Tenant};
use protocol::TokenId;
use serde_json::Value;

use super::model::VOCAB;
use super::random::{Random, mix};
use super::scenario::{Ask, Body, MAX_MODEL_LEN};

/// A prompt that nobody else has.
pub fn prompt(random: &mut Random, num_tokens: u64) -> Arc<[TokenId]> {
    (0..num_tokens).map(|_| TokenId(random.between(0, u64::from(VOCAB) - 1) as u32)).collect()
}

/// Anything that clients may send, in bursts or one by one.
pub fn random(random: &mut Random) -> Vec<Body> {
    let longest = random.pick(&[20, 60, 200]);
    let num_bodies = random.between(5, longest);
    let mean_pause = random.pick(&[0.002, 0.02, 0.1, 0.4]);
    let is_bursty = random.chance(0.3);
    let tenants: Vec<(Tenant, u32)> = (0..random.between(1, 4))
        .map(|i| (format!("tenant-{i}").into(), random.pick(&[1, 1, 1, 2, 5])))
        .collect();
    let prefixes: Vec<_> = (0..random.between(1, 4))
        .map(|_| {
            let num_tokens = random.between(1, 120);
            prompt(random, num_tokens)
        })
        .collect();
    let has_shared = random.chance(0.6);
    let mut at = Duration::from_millis(random.between(1000, 5000));
    let mut bodies = Vec::new();
    for _ in 0..num_bodies {
        if !is_bursty || random.chance(0.1) {
            let pause = random.exponential(if is_bursty { mean_pause * 10.0 } else { mean_pause });
            at += Duration::from_secs_f64(pause);
        }
        let num_asks = if random.chance(0.1) { random.between(2, 6) } else { 1 };
        let (tenant, weight) = &tenants[random.bits() as usize % tenants.len()];
        let asks = (0..num_asks).map(|_| {
            let mut ask = ask(random, has_shared.then_some(&prefixes));
            (ask.tenant, ask.weight) = (Arc::clone(tenant), *weight);
            ask
        });
        bodies.push(Body { at, asks: asks.collect() });
    }
    bodies
}

fn ask(random: &mut Random, prefixes: Option<&Vec<Arc<[TokenId]>>>) -> Ask {
    let max_prompt = random.pick(&[4, 30, 130]);
    let num_tokens = random.between(1, max_prompt);
    let mut tokens = prompt(random, num_tokens).to_vec();
    if let Some(prefixes) = prefixes
        && random.chance(0.7)
    {
        let prefix = &prefixes[random.bits() as usize % prefixes.len()];
        // Sometimes all of it, and nothing else.
        tokens.truncate(if random.chance(0.2) { 0 } else { tokens.len() });
        tokens.splice(0..0, prefix.iter().copied());
    }
    let longest = random.pick(&[1, 8, 40, 100]).min(u64::from(MAX_MODEL_LEN) - tokens.len() as u64);
    let max_tokens = random.between(1, longest) as u32;
    let is_scored = random.chance(0.05);
    let mut ask = Ask::new(tokens.into(), if is_scored { 0 } else { max_tokens });
    let priorities = [Priority::Offline, Priority::Standard, Priority::Standard];
    ask.priority = match random.between(0, 4) {
        0..=2 => random.pick(&priorities),
        3 => Priority::Interactive,
        _ => Priority::Realtime,
    };
    ask.num_choices = if random.chance(0.15) { random.between(2, 4) as u32 } else { 1 };
    if random.chance(0.15) {
        ask.deadline = Some(Duration::from_millis(random.between(1, 8000)));
    }
    ask.require_exact = random.chance(0.1);
    ask.scores_prompt = is_scored || random.chance(0.05);
    ask.logprobs = random.chance(0.2);
    let num_stops = random.pick(&[0, 1, 30]);
    ask.stop_tokens = prompt(random, num_stops);
    ask.stop_every = random.pick(&[0, 0, 0, 50]);
    ask.leaves_after = random.chance(0.1).then(|| random.between(0, 20) as u32);
    ask.fails_at = random.chance(0.03).then(|| random.between(1, 100) as u32);
    ask
}

/// A trace: lines `{"timestamp": 27, "input_length": 64, "output_length": 20}` in ascending
/// milliseconds, as `autoglm-bench --trace` takes them, and optionally `priority`, `tenant`,
/// `weight`, `deadline_ms`, `choices`, and Mooncake's `hash_ids` (equal ones begin equally).
///
/// # Errors
/// When a line can't be understood, or asks for more than `max_model_len` tokens.
pub fn trace(lines: impl BufRead, max_model_len: u32) -> Result<Vec<Body>> {
    let mut bodies: Vec<Body> = Vec::new();
    for (number, line) in (1u64..).zip(lines.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let body = body(&line, number, max_model_len).with_context(|| format!("line {number}"))?;
        if bodies.last().is_some_and(|last| last.at > body.at) {
            bail!("line {number}: the timestamp is before the one above it: sort the file");
        }
        bodies.push(body);
    }
    if bodies.is_empty() {
        bail!("it holds no request");
    }
    let first = bodies[0].at;
    bodies.iter_mut().for_each(|body| body.at -= first);
    Ok(bodies)
}

fn body(line: &str, number: u64, max_model_len: u32) -> Result<Body> {
    let fields: Value = serde_json::from_str(line)?;
    let number_of = |name: &str, default: u64| match fields.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_u64().with_context(|| format!("{name} must be a whole number")),
    };
    let timestamp = fields.get("timestamp").and_then(Value::as_f64).context("no timestamp")?;
    let at = Duration::try_from_secs_f64(timestamp / 1e3).context("timestamp")?;
    let (num_prompt, num_answer) =
        (number_of("input_length", 128)?, number_of("output_length", 64)?);
    if num_prompt == 0 || num_prompt + num_answer > u64::from(max_model_len) {
        bail!("{num_prompt} and {num_answer} tokens: 1 to {max_model_len} are a sequence");
    }
    let hashes = fields.get("hash_ids").and_then(Value::as_array).cloned().unwrap_or_default();
    let prompt = (0..num_prompt).map(|i| {
        let block = hashes.get(i as usize / 512).and_then(Value::as_u64);
        let of = block.map_or_else(|| mix(number, u64::MAX), |hash| mix(hash, 1));
        TokenId((mix(of, i) % u64::from(VOCAB)) as u32)
    });
    let mut ask = Ask::new(prompt.collect(), num_answer as u32);
    if let Some(name) = fields.get("priority") {
        let known = Priority::ALL.into_iter().find(|it| Some(it.name()) == name.as_str());
        ask.priority =
            known.context("priority must be offline, standard, interactive or realtime")?;
    }
    if let Some(tenant) = fields.get("tenant") {
        ask.tenant = tenant.as_str().context("tenant must be a string")?.into();
    }
    ask.weight = number_of("weight", 1)?.clamp(1, 1000) as u32;
    ask.num_choices = number_of("choices", 1)?.clamp(1, 128) as u32;
    ask.deadline = match number_of("deadline_ms", 0)? {
        0 => None,
        millis => Some(Duration::from_millis(millis)),
    };
    Ok(Body { at, asks: vec![ask] })
}
