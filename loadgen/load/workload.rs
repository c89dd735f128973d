//! What is asked: conversations of one turn or more, each with a tier and a tenant. What the
//! `index`th one is follows from the seed and its index alone, whatever was drawn before.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::mix::Mix;
use crate::client::request::{Endpoint, Parameters, Prompt};
use crate::client::{TENANT, TIER};
use crate::distribution::{Delays, Lengths, Purpose, random};

/// What requests say: each conversation is a function of the seed and its number.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Random words, a list, or the lengths of a trace.
    pub source: PromptSource,
    /// Tokens of an answer, at most; without it the prompt's own, else the parameters'.
    pub output_tokens: Option<Lengths>,
    /// Turns of a conversation: each but the first is sent when the one before has been answered.
    pub turns: u32,
    /// How long a user thinks before each turn but the first.
    pub think: Delays,
    /// A beginning that prompts share.
    pub prefix: Option<Prefix>,
    /// How many different conversations there are: they come in turn, and again from the first,
    /// with the same seeds. Without it each is another.
    pub distinct: Option<u64>,
    /// The service tiers, by share of the conversations.
    pub tiers: Mix,
    /// Tiers are named in a header, for servers that refuse a `service_tier` in the body.
    pub tier_in_header: bool,
    /// The tenants, by share of the conversations.
    pub tenants: Mix,
    /// Decides whatever is drawn, and is sent with each request, plus its number. Without it
    /// the same is drawn as with 0, and the server draws its seeds.
    pub seed: Option<u64>,
}

/// Random words, a list, or the lengths of a trace.
#[derive(Clone, Debug)]
pub enum PromptSource {
    /// A list, taken in turn, and again from the first.
    List(Arc<[Script]>),
    /// Random words, about one token each, of as many tokens as the law says.
    Random(Lengths),
    /// Random words of the lengths of a trace: of prompts and of answers, request by request.
    Lengths(Arc<[(Option<u32>, Option<u32>)]>),
}

/// What one user says, in one turn or in several.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// The user's turns; at least one.
    pub turns: Vec<Prompt>,
    /// Tokens of each answer, at most.
    pub max_tokens: Option<u32>,
}

/// A beginning that prompts share.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Its length, in words of about one token.
    pub tokens: u32,
    /// How many different ones there are; each conversation draws its own.
    pub num: u32,
}

/// One user's requests.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    /// Its number, from 0 in the order of the starts.
    pub index: u64,
    /// The user's turns, with the time to think before each and the tokens of its answer.
    pub turns: Vec<Turn>,
    /// `service_tier`, where the mix names one.
    pub tier: Option<Arc<str>>,
    /// Whether a header names the tier, and not the body.
    pub tier_in_header: bool,
    /// The tenant, where the mix names some: each has a header of its own.
    pub tenant: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// What the user says.
    pub prompt: Prompt,
    /// Tokens of the answer, at most; without it the parameters'.
    pub max_tokens: Option<u32>,
    /// From the answer before until it is sent.
    pub think: Duration,
}

impl Workload {
    /// Prompts of a list, once each, of one tier and one tenant.
    pub fn of(prompts: impl IntoIterator<Item = Prompt>) -> Self {
        let script = |prompt| Script { turns: vec![prompt], max_tokens: None };
        Self {
            source: PromptSource::List(prompts.into_iter().map(script).collect()),
            output_tokens: None,
            turns: 1,
            think: Delays::default(),
            prefix: None,
            distinct: None,
            tiers: Mix::default(),
            tier_in_header: false,
            tenants: Mix::default(),
            seed: None,
        }
    }

    /// Looks whether the endpoint can be asked all this.
    ///
    /// # Errors
    /// When it can't take a prompt of some form; when there is no prompt.
    pub fn check(&self, parameters: &Parameters) -> Result<()> {
        match &self.source {
            PromptSource::List(scripts) if scripts.is_empty() => bail!("there is no prompt"),
            PromptSource::List(scripts) => scripts
                .iter()
                .flat_map(|script| &script.turns)
                .try_for_each(|prompt| parameters.body(prompt).map(drop)),
            PromptSource::Lengths(lengths) if lengths.is_empty() => bail!("the trace is empty"),
            PromptSource::Lengths(_) | PromptSource::Random(_) => Ok(()),
        }
    }

    /// Conversations before a list begins again; none where none is like another.
    pub fn period(&self) -> Option<u64> {
        match &self.source {
            PromptSource::List(scripts) => Some(scripts.len() as u64),
            PromptSource::Lengths(_) | PromptSource::Random(_) => None,
        }
    }

    /// Conversation number `index`.
    pub(crate) fn conversation(&self, index: u64) -> Conversation {
        let index = self.distinct.map_or(index, |distinct| index % distinct.max(1));
        let mut random = random(Purpose::Conversation, self.seed.unwrap_or(0), index);
        let mut turns = self.turns(index, &mut random);
        if let Some(prefix) = &self.prefix {
            turns[0].prompt = self.with_prefix(prefix, &turns[0].prompt, &mut random);
        }
        if let Some(lengths) = &self.output_tokens {
            turns.iter_mut().for_each(|turn| turn.max_tokens = Some(lengths.sample(&mut random)));
        }
        for turn in turns.iter_mut().skip(1) {
            turn.think = self.think.sample(&mut random);
        }
        let (tier, tenant) = (self.tiers.draw(&mut random), self.tenants.draw(&mut random));
        Conversation { index, turns, tier, tier_in_header: self.tier_in_header, tenant }
    }

    fn turns(&self, index: u64, random: &mut StdRng) -> Vec<Turn> {
        let turn = |prompt, max_tokens| Turn { prompt, max_tokens, think: Duration::ZERO };
        let num_turns = self.turns.max(1);
        match &self.source {
            PromptSource::List(scripts) => {
                let at = |index: u64| &scripts[(index % scripts.len() as u64) as usize];
                let script = at(index);
                // Prompts of one turn make a conversation together.
                if num_turns > 1 && scripts.iter().all(|script| script.turns.len() == 1) {
                    let first = index.wrapping_mul(u64::from(num_turns));
                    let scripts =
                        (0..u64::from(num_turns)).map(|turn| at(first.wrapping_add(turn)));
                    return scripts
                        .map(|script| turn(script.turns[0].clone(), script.max_tokens))
                        .collect();
                }
                let turns = script.turns.iter().take(num_turns as usize);
                turns.map(|prompt| turn(prompt.clone(), script.max_tokens)).collect()
            }
            PromptSource::Random(lengths) => (0..num_turns)
                .map(|_| turn(Prompt::Text(words(lengths.sample(random), random)), None))
                .collect(),
            PromptSource::Lengths(lengths) => {
                let (input, output) = lengths[(index % lengths.len() as u64) as usize];
                vec![turn(Prompt::Text(words(input.unwrap_or(64), random)), output)]
            }
        }
    }

    fn with_prefix(&self, prefix: &Prefix, prompt: &Prompt, random: &mut StdRng) -> Prompt {
        let number = random.random_range(0..prefix.num.max(1));
        let seed = self.seed.unwrap_or(0);
        let mut of_prefix = self::random(Purpose::Prefix, seed, u64::from(number));
        let text = words(prefix.tokens, &mut of_prefix);
        match prompt {
            Prompt::Text(own) => Prompt::Text(format!("{text}\n{own}")),
            Prompt::Messages(messages) => {
                let system = json!({"role": "system", "content": text});
                Prompt::Messages([&[system], messages.as_slice()].concat())
            }
            Prompt::Tokens(own) => {
                let prefix = (0..prefix.tokens).map(|_| of_prefix.random_range(32..256));
                Prompt::Tokens(prefix.chain(own.iter().copied()).collect())
            }
        }
    }
}

impl Conversation {
    /// The body of turn `turn`, after what was said before.
    ///
    /// # Errors
    /// When the endpoint can't take a prompt of that form.
    pub(crate) fn body(
        &self,
        turn: usize,
        history: &History,
        parameters: &Parameters,
        seed: Option<u64>,
    ) -> Result<Value> {
        let said = &self.turns[turn];
        let mut body = parameters.body(&history.before(&said.prompt, parameters.endpoint))?;
        if let Some(max_tokens) = said.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        if let Some(seed) = seed {
            let number = self.index.wrapping_add((turn as u64) << 32);
            body["seed"] = seed.wrapping_add(number).into();
        }
        if let Some(tier) = self.tier.as_ref().filter(|_| !self.tier_in_header) {
            body["service_tier"] = tier.as_ref().into();
        }
        if let Some(tenant) = &self.tenant {
            body["user"] = tenant.as_ref().into();
        }
        Ok(body)
    }

    /// What says whose its requests are: a header's name and value, or nothing.
    pub(crate) fn headers(&self) -> Vec<(&'static str, &str)> {
        let tier = self.tier.as_deref().filter(|_| self.tier_in_header);
        let tier = tier.map(|tier| (TIER, tier));
        tier.into_iter().chain(self.tenant.as_deref().map(|tenant| (TENANT, tenant))).collect()
    }
}

/// What has been said in a conversation.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    messages: Vec<Value>,
    text: String,
}

impl History {
    /// Adds a turn and its answer.
    pub(crate) fn add(&mut self, prompt: &Prompt, answer: &str, endpoint: Endpoint) {
        match endpoint {
            Endpoint::Chat => {
                self.messages.extend(messages(prompt));
                self.messages.push(json!({"role": "assistant", "content": answer}));
            }
            Endpoint::Completions => {
                if let Prompt::Text(text) = prompt {
                    self.text.push_str(&format!("{text}{answer}\n"));
                }
            }
        }
    }

    /// A prompt with all that came before it.
    fn before(&self, prompt: &Prompt, endpoint: Endpoint) -> Prompt {
        match (endpoint, prompt) {
            (Endpoint::Chat, _) if !self.messages.is_empty() => {
                Prompt::Messages([self.messages.clone(), messages(prompt)].concat())
            }
            (Endpoint::Completions, Prompt::Text(text)) => {
                Prompt::Text(format!("{}{text}", self.text))
            }
            _ => prompt.clone(),
        }
    }
}

fn messages(prompt: &Prompt) -> Vec<Value> {
    match prompt {
        Prompt::Text(text) => vec![json!({"role": "user", "content": text})],
        Prompt::Messages(messages) => messages.clone(),
        // No endpoint for messages takes them.
        Prompt::Tokens(_) => Vec::new(),
    }
}

/// So many common words, which tokenizers of all kinds take for about one token each.
fn words(num: u32, random: &mut StdRng) -> String {
    let mut text = String::new();
    for index in 0..num {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
    }
    text
}

const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there",
    "use", "an", "each", "which", "she", "do", "how", "their", "if", "will", "up", "other",
    "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like",
    "him",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        let (model, endpoint) = ("m".to_owned(), Endpoint::Chat);
        Parameters { model, endpoint, ..Parameters::default() }
    }

    fn text(prompt: &Prompt) -> &str {
        match prompt {
            Prompt::Text(text) => text,
            Prompt::Messages(_) | Prompt::Tokens(_) => panic!("no text"),
        }
    }

    #[test]
    fn a_conversation_follows_from_its_index_and_the_seed() {
        let workload = |seed| Workload {
            source: PromptSource::Random("uniform:3:9".parse().unwrap()),
            output_tokens: Some("uniform:1:99".parse().unwrap()),
            tiers: "a:1,b:1".parse().unwrap(),
            seed,
            ..Workload::of([])
        };
        let shown = |seed, index| format!("{:?}", workload(seed).conversation(index));
        assert_eq!(shown(Some(4), 71), shown(Some(4), 71));
        assert_ne!(shown(Some(4), 71), shown(Some(5), 71));
        let distinct = Workload { distinct: Some(30), ..workload(Some(4)) };
        assert_eq!(format!("{:?}", distinct.conversation(71)), shown(Some(4), 11));
        let lengths = (0..500).map(|index| {
            let conversation = workload(None).conversation(index);
            text(&conversation.turns[0].prompt).split(' ').count()
        });
        let lengths: std::collections::BTreeSet<usize> = lengths.collect();
        assert_eq!(lengths, (3..=9).collect());
    }

    #[test]
    fn prompts_share_as_many_prefixes_as_were_asked_for() {
        let prefix = Some(Prefix { tokens: 20, num: 3 });
        let workload = Workload { prefix, ..Workload::of([Prompt::Text("end".into())]) };
        let beginnings = (0..100).map(|index| {
            let conversation = workload.conversation(index);
            let (prefix, own) = text(&conversation.turns[0].prompt).split_once('\n').unwrap();
            assert_eq!((prefix.split(' ').count(), own), (20, "end"));
            prefix.to_owned()
        });
        assert_eq!(beginnings.collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn a_turn_is_asked_after_all_that_was_said() {
        let prompts = ["a", "b", "c", "d"].map(|text| Prompt::Text(text.into()));
        let workload = Workload { turns: 2, ..Workload::of(prompts) };
        let second = workload.conversation(1);
        let mut history = History::default();
        history.add(&second.turns[0].prompt, "answer", Endpoint::Chat);
        let body = second.body(1, &history, &parameters(), Some(7)).unwrap();
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let said = [message("user", "c"), message("assistant", "answer"), message("user", "d")];
        assert_eq!(body["messages"], json!(said));
        assert_eq!(body["seed"], json!(7 + 1 + (1_u64 << 32)));
    }

    #[test]
    fn a_tier_and_a_tenant_are_sent() {
        let workload = Workload {
            tiers: "gold:1".parse().unwrap(),
            tenants: "anna:1".parse().unwrap(),
            ..Workload::of([Prompt::Text("a".into())])
        };
        let asked = |workload: &Workload| {
            let conversation = workload.conversation(0);
            let body = conversation.body(0, &History::default(), &parameters(), None).unwrap();
            (body, format!("{:?}", conversation.headers()))
        };
        let (body, headers) = asked(&workload);
        assert_eq!((&body["service_tier"], &body["user"]), (&json!("gold"), &json!("anna")));
        assert_eq!(headers, "[(\"x-tenant\", \"anna\")]");
        assert!(body.get("seed").is_none());
        let (body, headers) = asked(&Workload { tier_in_header: true, ..workload });
        assert_eq!(headers, "[(\"x-service-tier\", \"gold\"), (\"x-tenant\", \"anna\")]");
        assert!(body.get("service_tier").is_none());
    }
}
