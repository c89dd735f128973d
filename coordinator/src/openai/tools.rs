//! Tools and thinking in a chat: what the template is told, and how its answer is read.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::fields::wrong;
use super::{ApiError, Context, Fields, structured};
use crate::chat_template::ChatTemplate;
use crate::grammar::{Calls, Or};
use crate::parser::{AnswerFormat, CallFormat, Parser, Tools};

/// What a chat asks for beside messages.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// The tools as they came, those that may be called.
    tools: Vec<Value>,
    schemas: Tools,
    /// The names of those whose arguments are to keep to them even where none must be called.
    strict: Vec<String>,
    /// Whether one must be called, and which.
    choice: Choice,
    /// Whether more than one may be called in an answer.
    parallel: bool,
    /// What the template is told of thinking.
    thinking: Map<String, Value>,
    /// Whether reasoning is left out of the answer.
    hides_reasoning: bool,
}

/// What an answer must do of the calls that it may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Must {
    /// It may call as it likes.
    Nothing,
    /// Whatever it calls, it must get the arguments right.
    BeStrict,
    Call,
}

#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub parser: Parser,
    /// Whether more than one tool may be called.
    pub parallel: bool,
    /// Whether reasoning is left out.
    pub hides_reasoning: bool,
}

impl Reading {
    /// Of an answer that is nothing but text.
    pub(crate) fn plain() -> Self {
        let parser = Parser::new(AnswerFormat::default(), Tools::default(), "");
        Self { parser, parallel: true, hides_reasoning: false }
    }
}

/// Tools of a request: each is rendered, and its name is looked for in every answer.
const MAX_TOOLS: usize = 1024;

/// Characters of a tool's name, as OpenAI has it.
const MAX_NAME: usize = 64;

impl Asked {
    /// Takes the fields that concern tools and thinking.
    ///
    /// # Errors
    /// When one of them is wrong, or asks for what isn't built.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let tools = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) if tools.len() <= MAX_TOOLS => tools,
            Some(Value::Array(tools)) => {
                let message = format!("tools has {} tools, at most {MAX_TOOLS} fit", tools.len());
                return Err(ApiError::invalid("tools", message));
            }
            Some(other) => return Err(wrong("tools", "a list of tools", &other)),
        };
        let (mut schemas, mut strict) = (Map::new(), Vec::new());
        for (number, tool) in tools.iter().enumerate() {
            let (name, schema) = function(tool, &format!("tools[{number}]"))?;
            match &tool["function"]["strict"] {
                Value::Null | Value::Bool(false) => {}
                Value::Bool(true) => strict.push(name.to_owned()),
                other => {
                    let field = format!("tools[{number}].function.strict");
                    return Err(wrong(&field, "true or false", other));
                }
            }
            if schemas.insert(name.to_owned(), schema).is_some() {
                let message = format!("tools[{number}]: there are two tools called {name}");
                return Err(ApiError::invalid(format!("tools[{number}]"), message));
            }
        }
        let parallel = match fields.take("parallel_tool_calls") {
            None => true,
            Some(Value::Bool(parallel)) => parallel,
            Some(other) => return Err(wrong("parallel_tool_calls", "true or false", &other)),
        };
        let choice = choice(fields.take("tool_choice"), &schemas)?;
        let (tools, schemas) = match choice {
            Choice::None => (Vec::new(), Map::new()),
            _ => (tools, schemas),
        };
        let hides_reasoning = match fields.take("include_reasoning") {
            None => false,
            Some(Value::Bool(include)) => !include,
            Some(other) => return Err(wrong("include_reasoning", "true or false", &other)),
        };
        let thinking = thinking(fields)?;
        let schemas = Arc::new(schemas);
        Ok(Self { tools, schemas, strict, choice, parallel, thinking, hides_reasoning })
    }

    /// The template's variables, and the messages as it can show them. `extra` are those that the
    /// client has set by name: they count more.
    ///
    /// # Errors
    /// When nobody knows how the model calls tools.
    pub(super) fn prepare(
        &self,
        template: &ChatTemplate,
        messages: &mut Value,
        extra: &Map<String, Value>,
    ) -> Result<Map<String, Value>, ApiError> {
        let mut variables = self.thinking.clone();
        let calls = template.format().calls;
        if !self.tools.is_empty() && calls.is_none() {
            let message = "how this model calls tools is not in its chat template; remove them";
            return Err(ApiError::invalid("tools", message).code("unsupported_parameter"));
        }
        if template.knows_tools() {
            if !self.tools.is_empty() {
                variables.insert("tools".into(), self.tools.clone().into());
            }
        } else if calls == Some(CallFormat::Json) {
            describe(&self.tools, messages);
        }
        variables.extend(extra.clone());
        Ok(variables)
    }

    /// The calls that the answer may consist of, and what it must do of them.
    pub(super) fn calls(&self, context: Context<'_>) -> Option<(Calls, Must)> {
        let format = context.chat_template?.format().calls?;
        let named = match &self.choice {
            Choice::Named(name) => Some(name.as_str()),
            _ => None,
        };
        let mut tools = structured::tools(&self.schemas, named);
        let must = match self.choice {
            Choice::Required | Choice::Named(_) => Must::Call,
            _ if self.strict.iter().any(|name| tools.contains_key(name)) => {
                // The others may have whatever arguments the model gives them.
                let others = tools.iter_mut().filter(|(name, _)| !self.strict.contains(name));
                others.for_each(|(_, schema)| *schema = json!({}));
                Must::BeStrict
            }
            _ => Must::Nothing,
        };
        let parallel = self.parallel && named.is_none();
        (!tools.is_empty()).then_some((Calls { format, tools, parallel, or: Or::Nothing }, must))
    }

    /// How the answer to a prompt that ends with `prompt_end` is read; `None` is as plain text.
    pub(super) fn reading(&self, template: &ChatTemplate, prompt_end: &str) -> Option<Reading> {
        let format = template.format();
        (format.reasons || !self.schemas.is_empty()).then(|| Reading {
            parser: Parser::new(format, Arc::clone(&self.schemas), prompt_end),
            parallel: self.parallel,
            hides_reasoning: self.hides_reasoning,
        })
    }
}

/// Name and schema of a tool.
fn function<'a>(tool: &'a Value, place: &str) -> Result<(&'a str, Value), ApiError> {
    if tool["type"] != "function" {
        return Err(wrong(&format!("{place}.type"), "\"function\"", &tool["type"]));
    }
    let function = &tool["function"];
    let is_sign = |sign: char| sign.is_ascii_alphanumeric() || "_-.".contains(sign);
    let is_name = |name: &&str| !name.is_empty() && name.chars().all(is_sign);
    let name = function["name"].as_str().filter(is_name).filter(|it| it.len() <= MAX_NAME);
    let Some(name) = name else {
        let expected = format!("1 to {MAX_NAME} letters, digits, _, - or .");
        return Err(wrong(&format!("{place}.function.name"), &expected, &function["name"]));
    };
    match &function["parameters"] {
        Value::Null => Ok((name, json!({}))),
        Value::Object(_) => Ok((name, function["parameters"].clone())),
        other => Err(wrong(&format!("{place}.function.parameters"), "a JSON schema", other)),
    }
}

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Choice {
    /// If it likes.
    #[default]
    Auto,
    /// It doesn't.
    None,
    /// At least one.
    Required,
    Named(String),
}

fn choice(choice: Option<Value>, schemas: &Map<String, Value>) -> Result<Choice, ApiError> {
    let Some(choice) = choice else { return Ok(Choice::Auto) };
    match choice.as_str() {
        Some("auto") => Ok(Choice::Auto),
        Some("none") => Ok(Choice::None),
        Some("required") if schemas.is_empty() => {
            let message = "tool_choice asks for a call, and there are no tools";
            Err(ApiError::invalid("tool_choice", message))
        }
        Some("required") => Ok(Choice::Required),
        _ => match choice["function"]["name"].as_str().or(choice["name"].as_str()) {
            Some(name) if !schemas.contains_key(name) => {
                let message = format!("tool_choice names {name}, which is not among the tools");
                Err(ApiError::invalid("tool_choice", message))
            }
            Some(name) => Ok(Choice::Named(name.to_owned())),
            None => Err(wrong("tool_choice", "auto, none, required or a function", &choice)),
        },
    }
}

/// What the template is told of thinking: `reasoning_effort`, and the names by which it is switched
/// on and off: z.ai's `thinking`, which says with `clear_thinking`, too, whether thoughts of
/// earlier turns are left out, and `enable_thinking`. Templates that know none think as they do.
fn thinking(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut told = Map::new();
    if let Some(effort) = fields.string("reasoning_effort")? {
        let known = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
        if !known.contains(&effort.as_str()) {
            let expected = format!("one of {}", known.join(", "));
            return Err(wrong("reasoning_effort", &expected, &effort.into()));
        }
        if effort == "none" {
            told.insert("enable_thinking".into(), false.into());
        }
        told.insert("reasoning_effort".into(), effort.into());
    }
    if let Some(thinking) = fields.take("thinking") {
        let enabled = match thinking["type"].as_str() {
            Some("enabled" | "adaptive") => true,
            Some("disabled") => false,
            _ => {
                let expected = "an object whose type is enabled or disabled";
                return Err(wrong("thinking", expected, &thinking));
            }
        };
        told.insert("enable_thinking".into(), enabled.into());
        match &thinking["clear_thinking"] {
            Value::Null => {}
            clear @ Value::Bool(_) => drop(told.insert("clear_thinking".into(), clear.clone())),
            other => return Err(wrong("thinking.clear_thinking", "true or false", other)),
        }
    }
    match fields.take("enable_thinking") {
        None => {}
        Some(Value::Bool(enabled)) => {
            told.insert("enable_thinking".into(), enabled.into());
        }
        Some(other) => return Err(wrong("enable_thinking", "true or false", &other)),
    }
    Ok(told)
}

/// Puts tools and calls into messages for a template that knows only text, as models that were
/// trained on ChatML have them from Hermes on.
fn describe(tools: &[Value], messages: &mut Value) {
    let Value::Array(messages) = messages else { return };
    for message in messages.iter_mut() {
        let Some(calls) = message.as_object_mut().and_then(|it| it.remove("tool_calls")) else {
            continue;
        };
        let mut text = message["content"].as_str().unwrap_or_default().to_owned();
        for call in calls.as_array().into_iter().flatten() {
            let function = &call["function"];
            let call = json!({"name": function["name"], "arguments": function["arguments"]});
            text += &format!("\n<tool_call>\n{call}\n</tool_call>");
        }
        message["content"] = text.trim_start().into();
    }
    if tools.is_empty() {
        return;
    }
    let tools: Vec<_> = tools.iter().map(|tool| format!("{tool}\n")).collect();
    let text = format!(
        "# Tools\n\nThese functions can be called, each described by a JSON schema:\n\
         <tools>\n{}</tools>\n\nTo call one, answer with its name and its arguments as a JSON \
         object between tags:\n<tool_call>\n{{\"name\": NAME, \"arguments\": ARGUMENTS}}\n\
         </tool_call>",
        tools.concat()
    );
    match messages.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => {
            let before = system["content"].as_str().unwrap_or_default();
            system["content"] = format!("{before}\n\n{text}").into();
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::Served;
    use crate::openai::{Parsed, parse_chat};
    use crate::parser::Said;

    /// The GLM-4 fixture's tokenizer with another template.
    fn served(template: &str) -> Served {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/templates");
        with_text(std::fs::read_to_string(folder.join(template)).unwrap())
    }

    fn with_text(text: String) -> Served {
        let served = Served::chat();
        let source = checkpoint::TokenizerSource::Json {
            tokenizer: Vec::new(),
            special: checkpoint::SpecialTokens::default(),
            chat_template: Some(text),
        };
        let chat_template = ChatTemplate::from_source(&source, &served.config);
        let model = crate::openai::ServedModel { max_model_len: 8192, ..served.model };
        Served { chat_template, model, ..served }
    }

    fn parse(served: &Served, more: Value) -> Result<Parsed, ApiError> {
        let mut body = json!({
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {
                "name": "add", "description": "Adds.", "parameters": {"type": "object"},
            }}],
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse_chat(body.to_string().as_bytes(), served.context())
    }

    fn rendered(served: &Served, more: Value) -> String {
        let parsed = parse(served, more).unwrap();
        served.tokenizer.decode(&parsed.requests[0].prompt, false)
    }

    #[test]
    fn the_template_shows_the_tools_unless_none_may_be_called() {
        for template in ["glm45.jinja", "glm47.jinja", "chatml.jinja"] {
            let served = served(template);
            let text = rendered(&served, json!({}));
            assert!(text.contains("add") && text.contains("Adds."), "{template}: {text}");
            for more in [json!({"tool_choice": "none"}), json!({"tools": []})] {
                let text = rendered(&served, more);
                assert!(!text.contains("Adds."), "{template}: {text}");
            }
        }
    }

    /// Goal: who says strict gets arguments of the schema also where the model may answer anything.
    #[test]
    fn strict_tools_are_called_right_or_not_at_all() {
        let tool = |name: &str, strict: Value| {
            json!({"type": "function", "function": {
                "name": name, "strict": strict, "parameters": {"type": "object"},
            }})
        };
        for template in ["glm4.jinja", "glm45.jinja", "glm47.jinja", "chatml.jinja"] {
            let served = served(template);
            let keeps =
                |more: Value| parse(&served, more).unwrap().requests[0].constraint.is_some();
            let (strict, loose) = (tool("a", json!(true)), tool("b", json!(false)));
            assert!(keeps(json!({"tools": [loose, strict]})), "{template}");
            assert!(keeps(json!({"tools": [strict], "tool_choice": "auto"})));
            let object = json!({"type": "json_object"});
            assert!(keeps(json!({"tools": [strict], "response_format": object})));
            assert!(!keeps(json!({"tools": [loose]})));
            assert!(!keeps(json!({"tools": [strict], "tool_choice": "none"})));
            let refused = |more: Value| parse(&served, more).unwrap_err();
            let error = refused(json!({"tools": [strict], "guided_regex": "[a-z]+"}));
            assert_eq!(error.param.as_deref(), Some("guided_regex"), "{error}");
            let error = refused(json!({"tools": [tool("a", json!(1))]}));
            assert_eq!(error.param.as_deref(), Some("tools[0].function.strict"), "{error}");
            let broken = json!({"type": "function", "function": {
                "name": "a", "strict": true, "parameters": {
                    "type": "object", "properties": {"a": {"type": "wibble"}},
                },
            }});
            let error = refused(json!({"tools": [broken]}));
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some("tools"), Some("invalid_grammar"))
            );
        }
    }

    #[test]
    fn a_template_that_knows_only_text_has_tools_and_calls_as_such() {
        let each = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n";
        let served = with_text(format!("{{% for m in messages %}}{each}{{% endfor %}}"));
        let calls = json!([{"type": "function", "id": "call_1", "function": {
            "name": "add", "arguments": "{\"a\": 1}",
        }}]);
        let text = rendered(
            &served,
            json!({"messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1"},
                {"role": "assistant", "content": null, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1", "content": "2"},
            ]}),
        );
        assert!(text.contains("Be brief.\n\n# Tools"), "{text}");
        let call = "<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>";
        assert!(text.contains(call), "{text}");
    }

    /// Goal: what clients send back of calls is to the model what it wrote: arguments that travel
    /// as text, content that isn't there, results in parts.
    #[test]
    fn turns_are_shown_as_they_were_written() {
        let call = |arguments: Value| {
            json!({"type": "function", "id": "c1", "function": {
                "name": "add", "arguments": arguments,
            }})
        };
        let parts = json!([{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]);
        for (template, said) in [
            (
                "glm45.jinja",
                "<|assistant|>\n<think>Hm.</think>\n<tool_call>add\n<arg_key>a</arg_key>\n\
                 <arg_value>[1, \"x\"]</arg_value>\n\
                 <arg_key>b</arg_key>\n<arg_value>1</arg_value>\n\
                 </tool_call><|observation|>\n<tool_response>\n42\n</tool_response><|assistant|>",
            ),
            (
                "glm47.jinja",
                "<|assistant|><think>Hm.</think><tool_call>add<arg_key>a</arg_key>\
                 <arg_value>[1, \"x\"]</arg_value><arg_key>b</arg_key><arg_value>1</arg_value>\
                 </tool_call><|observation|><tool_response>42</tool_response><|assistant|><think>",
            ),
            (
                "glm53.jinja",
                "<|assistant|><think>Hm.</think><tool_call>add<arg_key>a</arg_key>\
                 <arg_value>[1, \"x\"]</arg_value><arg_key>b</arg_key><arg_value>1</arg_value>\
                 </tool_call><|observation|><tool_response>42</tool_response><|assistant|><think>",
            ),
        ] {
            let served = served(template);
            let object = json!({"a": [1, "x"], "b": "1"});
            for (arguments, content, result) in [
                (object.to_string().into(), Value::Null, json!("42")),
                (object, json!(""), parts.clone()),
            ] {
                let answer = json!({"role": "assistant", "content": content,
                    "reasoning_content": "Hm.", "tool_calls": [call(arguments)]});
                let messages = json!([
                    {"role": "user", "content": "1+1"}, answer,
                    {"role": "tool", "tool_call_id": "c1", "content": result},
                ]);
                let text = rendered(&served, json!({"messages": messages}));
                assert!(text.ends_with(said), "{template}: {text}");
            }
        }
    }

    #[test]
    fn thinking_is_switched_by_every_name_that_clients_have_for_it() {
        let served = served("glm47.jinja");
        let ends = |more: Value| {
            let text = rendered(&served, more);
            let at = text.rfind("<|assistant|>").unwrap();
            text[at..].to_owned()
        };
        let on = ends(json!({}));
        for more in [
            json!({"thinking": {"type": "disabled"}}),
            json!({"reasoning_effort": "none"}),
            json!({"enable_thinking": false}),
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            json!({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false}}),
        ] {
            assert_ne!(ends(more.clone()), on, "{more}");
        }
        for more in [json!({"thinking": {"type": "enabled"}}), json!({"reasoning_effort": "low"})] {
            assert_eq!(ends(more.clone()), on, "{more}");
        }
    }

    /// Templates of GLM-5.3 don't know how not to think, but how much, and what is kept of it.
    #[test]
    fn how_much_is_thought_and_what_is_kept_of_it_reaches_the_template() {
        let served = served("glm53.jinja");
        let assistant = json!({"role": "assistant", "content": "3", "reasoning_content": "easy"});
        let user = json!({"role": "user", "content": "And 2+2?"});
        let text = |mut more: Value| {
            more["messages"] = json!([{"role": "user", "content": "1+2?"}, assistant, user]);
            rendered(&served, more)
        };
        for (more, effort, thoughts) in [
            (json!({}), "Effort: Max", true),
            (json!({"reasoning_effort": "low"}), "Effort: Low", true),
            (json!({"chat_template_kwargs": {"reasoning_effort": "high"}}), "Effort: High", true),
            (
                json!({"thinking": {"type": "enabled", "clear_thinking": true}}),
                "Effort: Max",
                false,
            ),
            (json!({"chat_template_kwargs": {"clear_thinking": true}}), "Effort: Max", false),
        ] {
            let text = text(more.clone());
            assert!(text.contains(effort), "{more}: {text}");
            assert_eq!(text.contains("<think>easy</think>"), thoughts, "{more}: {text}");
        }
        let wrong = json!({"thinking": {"type": "enabled", "clear_thinking": 1}});
        let error = parse(&served, wrong).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("thinking.clear_thinking"));
    }

    #[test]
    fn the_answer_is_read_as_the_prompt_has_begun_it() {
        let said = |template: &str, more: Value, text: &str| {
            let parsed = parse(&served(template), more).unwrap();
            let mut parser = parsed.options.reading.unwrap().parser;
            let mut said = parser.push(text);
            said.extend(parser.finish());
            said
        };
        let (thought, answer) = (Said::Reasoning("a".into()), Said::Content("b".into()));
        let both = [thought, answer.clone()];
        assert_eq!(said("glm47.jinja", json!({}), "a</think>b"), both);
        assert_eq!(said("glm45.jinja", json!({}), "\n<think>a</think>\nb"), both);
        let off = json!({"enable_thinking": false});
        assert_eq!(said("glm47.jinja", off, "b"), [answer]);
        let call = "<tool_call>add</tool_call>";
        let called = [Said::Call("add".into()), Said::Arguments("{}".into())];
        assert_eq!(said("glm45.jinja", json!({}), call), called);
        let none = json!({"tool_choice": "none"});
        assert_eq!(said("glm45.jinja", none, call), [Said::Content(call.into())]);
    }

    #[test]
    fn what_is_wrong_with_a_tool_is_named() {
        let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let long = "x".repeat(65);
        let twice = json!({"type": "function", "function": {"name": "f"}});
        for (more, param) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (tool(json!({})), "tools[0].function.name"),
            (tool(json!({"name": "a b"})), "tools[0].function.name"),
            (tool(json!({"name": long})), "tools[0].function.name"),
            (tool(json!({"name": "f", "parameters": 1})), "tools[0].function.parameters"),
            (json!({"tools": [twice, twice]}), "tools[1]"),
            (
                json!({"tool_choice": {"type": "function", "function": {"name": "sub"}}}),
                "tool_choice",
            ),
            (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            let error = parse(&served("glm45.jinja"), more.clone()).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{more}");
        }
        let error = parse(&served("llama3.jinja"), json!({})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools"), "it has no place for them");
    }
}
