//! How a family of models writes what is more than text, read from its chat template.

/// What may be in an answer beside text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    /// Whether `<think>` and `</think>` enclose reasoning.
    pub reasons: bool,
    /// How tools are called.
    pub calls: Option<CallFormat>,
}

/// How an answer calls a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// GLM-4.5 and later: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>
    /// </tool_call>`; 4.5 and 4.6 have line ends between.
    KeysAndValues,
    /// GLM-4: the name, a line end and a JSON object are the whole answer.
    NameThenJson,
    /// Hermes, Qwen and other users of ChatML: a JSON object with `name` and `arguments` between
    /// `<tool_call>` and `</tool_call>`.
    Json,
}

impl CallFormat {
    /// The tag that a call begins with, if it does.
    pub(crate) fn opening(self) -> Option<&'static str> {
        match self {
            Self::KeysAndValues | Self::Json => Some("<tool_call>"),
            Self::NameThenJson => None,
        }
    }
}

impl AnswerFormat {
    /// The format of answers to prompts that `template` renders.
    pub fn of_template(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        let calls = if has("<arg_key>") {
            Some(CallFormat::KeysAndValues)
        } else if has("<tool_call>") {
            Some(CallFormat::Json)
        } else if has("<|observation|>") {
            Some(CallFormat::NameThenJson)
        } else if has("<|im_start|>") {
            // It says nothing of tools: they are described to it as Hermes has them.
            Some(CallFormat::Json)
        } else {
            None
        };
        Self { reasons: has("</think>"), calls }
    }
}
