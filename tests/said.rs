//! What a stream said: all that may not differ from an undisturbed run.

use serde_json::{Value, json};

/// Choice by choice it is one; names, times and what was cached are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    pub text: String,
    pub token_ids: Vec<Value>,
    pub logprobs: Vec<Value>,
    pub finish_reason: Option<String>,
    pub usage: Value,
    pub exact: Option<Value>,
    pub is_done: bool,
}

impl Said {
    /// All of a stream that must have come to its end.
    pub fn of(stream: &str) -> Self {
        let mut said = Self::default();
        for line in stream.lines() {
            said.hear(line).unwrap_or_else(|error| panic!("{error}"));
        }
        assert!(said.is_done, "the stream broke off: {stream}");
        said
    }

    /// One line more: the tokens that it brought.
    ///
    /// # Errors
    /// What the server says went wrong.
    pub fn hear(&mut self, line: &str) -> Result<usize, String> {
        let Some(data) = line.strip_prefix("data: ") else { return Ok(0) };
        if data == "[DONE]" {
            self.is_done = true;
            return Ok(0);
        }
        let chunk: Value = serde_json::from_str(data).map_err(|cause| cause.to_string())?;
        if let Some(error) = chunk.get("error") {
            return Err(error.to_string());
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| !usage.is_null()) {
            self.usage = json!([usage["prompt_tokens"], usage["completion_tokens"]]);
        }
        self.exact = self.exact.take().or(chunk.get("exact").cloned());
        let num_before = self.token_ids.len();
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            self.text += choice["text"].as_str().unwrap_or_default();
            self.token_ids.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
            self.logprobs.push(choice["logprobs"]["token_logprobs"].clone());
            self.logprobs.push(choice["logprobs"]["top_logprobs"].clone());
            let reason = choice["finish_reason"].as_str().map(str::to_owned);
            self.finish_reason = self.finish_reason.take().or(reason);
        }
        Ok(self.token_ids.len() - num_before)
    }
}
