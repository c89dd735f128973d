//! What is asked: the two endpoints and the bodies they take.

use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// Which of the API's endpoints is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    #[default]
    Chat,
    /// `/v1/completions`, for models without a chat template.
    Completions,
}

/// What a model is asked about.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A question, or the beginning of a text.
    Text(String),
    /// A conversation, as the chat API takes it.
    Messages(Vec<Value>),
    /// The beginning of a text, as the model reads it.
    Tokens(Vec<u32>),
}

/// What every request of a run has in common.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The model's name in the API.
    pub model: String,
    /// Which form prompts and answers have.
    pub endpoint: Endpoint,
    /// Tokens of an answer, at most.
    pub max_tokens: u32,
    /// Sampling temperature; without it the server's default.
    pub temperature: Option<f32>,
    /// Asks for `max_tokens` tokens whatever the model says, which servers of vLLM's kind grant.
    pub ignore_eos: bool,
    /// Asks for the answer in one piece, which has no time to a first token.
    pub whole: bool,
    /// Further fields of the body, or others in the place of ours.
    pub extra: Map<String, Value>,
}

impl Default for Parameters {
    /// A chat of 64 tokens at most with a model without a name.
    fn default() -> Self {
        Self {
            model: String::new(),
            endpoint: Endpoint::Chat,
            max_tokens: 64,
            temperature: None,
            ignore_eos: false,
            whole: false,
            extra: Map::new(),
        }
    }
}

impl Endpoint {
    /// Behind the server's address.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "chat" => Ok(Self::Chat),
            "completions" => Ok(Self::Completions),
            _ => Err(format!("{name:?} is no endpoint: use chat or completions")),
        }
    }
}

impl Parameters {
    /// The body of a request for `prompt`.
    ///
    /// # Errors
    /// When the endpoint can't take a prompt of that form.
    pub fn body(&self, prompt: &Prompt) -> Result<Value> {
        let mut body = json!({
            "model": self.model,
            "max_tokens": self.max_tokens,
            "stream": !self.whole,
        });
        if !self.whole {
            body["stream_options"] = json!({"include_usage": true});
        }
        match (self.endpoint, prompt) {
            (Endpoint::Chat, Prompt::Text(text)) => {
                body["messages"] = json!([{"role": "user", "content": text}]);
            }
            (Endpoint::Chat, Prompt::Messages(messages)) => body["messages"] = json!(messages),
            (Endpoint::Completions, Prompt::Text(text)) => body["prompt"] = json!(text),
            (Endpoint::Completions, Prompt::Tokens(tokens)) => body["prompt"] = json!(tokens),
            (Endpoint::Completions, Prompt::Messages(_)) => {
                bail!("a prompt of messages needs --endpoint chat")
            }
            (Endpoint::Chat, Prompt::Tokens(_)) => {
                bail!("a prompt of tokens needs --endpoint completions")
            }
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        Ok(body)
    }
}
