//! What is asked: what every command that sends a load takes.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use loadgen::client::request::{Endpoint, Parameters};
use loadgen::distribution::{Delays, Lengths};
use loadgen::load::mix::Mix;
use loadgen::load::prompts;
use loadgen::load::trace::Trace;
use loadgen::load::workload::{Prefix, PromptSource, Workload};
use serde_json::Value;

#[derive(clap::Args)]
pub(crate) struct WorkloadArguments {
    /// Tokens of an answer, at most.
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) max_tokens: NonZeroU32,
    /// Asks the server to go on to --max-tokens whatever the model says.
    #[arg(long)]
    ignore_eos: bool,
    /// Asks for answers in one piece: they have an end, and no time to a first token.
    #[arg(long)]
    no_stream: bool,
    /// Further fields of every request, as a JSON object.
    #[arg(long, value_name = "JSON")]
    extra_body: Option<String>,
    /// Prompts, one a line: text, or JSON with `prompt`, `messages` or `conversations`; or a JSON
    /// list, as ShareGPT's [default: a built-in list].
    #[arg(long, value_name = "FILE", conflicts_with = "input_tokens")]
    prompts: Option<PathBuf>,
    /// Prompts of random words, of so many tokens: 512, uniform:LOW:HIGH, normal:MEAN:DEVIATION,
    /// lognormal:MEDIAN:SIGMA, exponential:MEAN, gamma:MEAN:SHAPE.
    #[arg(long, value_name = "LAW")]
    input_tokens: Option<Lengths>,
    /// Tokens of each answer, at most, drawn in the same way, instead of --max-tokens.
    #[arg(long, value_name = "LAW")]
    output_tokens: Option<Lengths>,
    /// Words that prompts begin with in common.
    #[arg(long, value_name = "N")]
    prefix_tokens: Option<NonZeroU32>,
    /// How many different such beginnings there are.
    #[arg(long, value_name = "N", default_value = "1", requires = "prefix_tokens")]
    prefixes: NonZeroU32,
    /// Turns of a conversation. Each is sent with all that was said before it, when the one before
    /// has been answered; a load counts conversations in flight, and starts conversations.
    #[arg(long, value_name = "N", default_value = "1")]
    turns: NonZeroU32,
    /// Time between an answer and the next turn: 2s, uniform:LOW:HIGH and so on.
    #[arg(long, value_name = "LAW", default_value = "0s", requires = "turns")]
    think: Delays,
    /// Service tiers by share, as in interactive:0.7,batch:0.3, sent as `service_tier`.
    #[arg(long, value_name = "MIX")]
    tier: Option<Mix>,
    /// Names tiers in the header x-service-tier, for servers that refuse `service_tier`.
    #[arg(long, requires = "tier")]
    tier_in_header: bool,
    /// Tenants by share, as in a:1,b:2, sent as `user` and in the header x-tenant.
    #[arg(long, value_name = "MIX")]
    tenant: Option<Mix>,
    /// Decides what is drawn and the order of the prompts, and is sent with each request (plus
    /// its number).
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

impl WorkloadArguments {
    /// Puts what all requests have in common where it belongs.
    pub(crate) fn set(&self, parameters: &mut Parameters) -> Result<()> {
        parameters.ignore_eos = self.ignore_eos;
        parameters.whole = self.no_stream;
        if let Some(json) = &self.extra_body {
            match serde_json::from_str(json).context("--extra-body is no JSON")? {
                Value::Object(fields) => parameters.extra = fields,
                _ => bail!("--extra-body is no JSON object: write it as in '{{\"top_p\": 0.9}}'"),
            }
        }
        Ok(())
    }

    pub(crate) fn workload(&self, endpoint: Endpoint, trace: Option<&Trace>) -> Result<Workload> {
        let of_trace = trace.and_then(Trace::source).filter(|_| self.prompts.is_none());
        let source = match (&self.input_tokens, of_trace) {
            (Some(lengths), _) => PromptSource::Random(lengths.clone()),
            (None, Some(source)) => source,
            (None, None) => {
                let mut scripts = match &self.prompts {
                    Some(path) => prompts::read(path)?,
                    None => prompts::built_in(endpoint),
                };
                if let Some(seed) = self.seed {
                    prompts::shuffle(&mut scripts, seed);
                }
                PromptSource::List(scripts.into())
            }
        };
        let prefix = self
            .prefix_tokens
            .map(|tokens| Prefix { tokens: tokens.get(), num: self.prefixes.get() });
        Ok(Workload {
            source,
            output_tokens: self.output_tokens.clone(),
            turns: self.turns.get(),
            think: self.think.clone(),
            prefix,
            distinct: None,
            tiers: self.tier.clone().unwrap_or_default(),
            tier_in_header: self.tier_in_header,
            tenants: self.tenant.clone().unwrap_or_default(),
            seed: self.seed,
        })
    }
}
