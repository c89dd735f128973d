//! What a load asks: a built-in list, or a file of the user's.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rand::seq::SliceRandom;
use serde_json::Value;

use super::workload::Script;
use crate::client::request::{Endpoint, Prompt};
use crate::distribution::{Purpose, random};

/// Bytes of a file of prompts.
const MAX_BYTES: u64 = 1 << 30;

/// The built-in prompts for an endpoint: questions for a chat, openings for a completion.
pub fn built_in(endpoint: Endpoint) -> Vec<Script> {
    let texts: &[&str] = match endpoint {
        Endpoint::Chat => &QUESTIONS,
        Endpoint::Completions => &OPENINGS,
    };
    texts.iter().map(|text| one(Prompt::Text((*text).to_string()), None)).collect()
}

/// Reads a file with one prompt a line: a JSON object with `prompt`, `messages` or ShareGPT's
/// `conversations`, and `output_tokens` if it limits its answer; a JSON string; or plain text.
/// Empty lines are skipped. A file that is one JSON list, as ShareGPT's is, holds such objects.
///
/// # Errors
/// When it can't be read, a line can't be understood, or there is no prompt in it.
pub fn read(path: &Path) -> Result<Vec<Script>> {
    let name = path.display();
    let num_bytes = std::fs::metadata(path).map(|file| file.len()).unwrap_or(0);
    if num_bytes > MAX_BYTES {
        bail!("{name} is longer than {MAX_BYTES} bytes");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
    let mut scripts = Vec::new();
    if text.trim_start().starts_with('[') {
        let entries: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("{name} is no JSON list"))?;
        for (index, entry) in entries.into_iter().enumerate() {
            // ShareGPT's own file has conversations without a word.
            let script = script(entry).with_context(|| format!("{name}, entry {}", index + 1))?;
            scripts.extend(script);
        }
    } else {
        for (index, line) in text.lines().enumerate() {
            if !line.trim().is_empty() {
                let script = parse(line).with_context(|| format!("{name}, line {}", index + 1))?;
                scripts.extend(script);
            }
        }
    }
    if scripts.is_empty() {
        bail!("{name} holds no prompt");
    }
    Ok(scripts)
}

/// Puts prompts in an order that `seed` decides.
pub fn shuffle(scripts: &mut [Script], seed: u64) {
    scripts.shuffle(&mut random(Purpose::Order, seed, 0));
}

fn one(prompt: Prompt, max_tokens: Option<u32>) -> Script {
    Script { turns: vec![prompt], max_tokens }
}

fn parse(line: &str) -> Result<Option<Script>> {
    if !line.starts_with(['{', '"']) {
        return Ok(Some(one(Prompt::Text(line.to_string()), None)));
    }
    script(serde_json::from_str(line)?)
}

/// What a JSON value asks; nothing when nobody says anything in it.
fn script(mut value: Value) -> Result<Option<Script>> {
    if let Value::String(text) = value {
        return Ok(Some(one(Prompt::Text(text), None)));
    }
    let wrong = || {
        anyhow!("neither a `prompt` that is text nor a list of `messages` or of `conversations`")
    };
    if !value.is_object() {
        return Err(wrong());
    }
    let max_tokens = match &value["output_tokens"] {
        Value::Null => None,
        number => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            let number = number.filter(|&number| number > 0);
            Some(number.ok_or_else(|| anyhow!("`output_tokens` is no number above 0"))?)
        }
    };
    match ["prompt", "messages", "conversations"].map(|name| value[name].take()) {
        [Value::String(text), Value::Null, Value::Null] => {
            Ok(Some(one(Prompt::Text(text), max_tokens)))
        }
        [Value::Null, Value::Array(messages), Value::Null] => {
            Ok(Some(one(Prompt::Messages(messages), max_tokens)))
        }
        [Value::Null, Value::Null, Value::Array(said)] => {
            let of_user =
                said.iter().filter(|turn| matches!(turn["from"].as_str(), Some("human" | "user")));
            let turns: Option<Vec<Prompt>> = of_user
                .map(|turn| turn["value"].as_str().map(|text| Prompt::Text(text.to_owned())))
                .collect();
            let turns = turns.ok_or_else(|| anyhow!("a turn of a user without a `value`"))?;
            Ok((!turns.is_empty()).then_some(Script { turns, max_tokens }))
        }
        _ => Err(wrong()),
    }
}

const QUESTIONS: [&str; 40] = [
    "What is the capital of France?",
    "Explain in two sentences what a computer network is.",
    "Why is the sky blue?",
    "Name three animals that live in the sea.",
    "What is the difference between weather and climate?",
    "Write a haiku about the first snow.",
    "How do I boil an egg?",
    "What does a compiler do?",
    "Give me a short summary of the story of Romeo and Juliet.",
    "How many days are there in a leap year?",
    "What is a prime number? Give three examples.",
    "Suggest a name for a small bakery by the sea.",
    "Why do leaves change colour in autumn?",
    "Translate 'good morning' into Spanish.",
    "What is photosynthesis?",
    "Tell me one interesting fact about octopuses.",
    "How does a bicycle stay upright?",
    "Write one sentence that uses the word 'lantern'.",
    "What should I pack for a day in the mountains?",
    "Who wrote 'Pride and Prejudice'?",
    "What is the largest planet in our solar system?",
    "Explain gravity to a child.",
    "List four colours of the rainbow.",
    "How can I sleep better at night?",
    "What is the opposite of 'generous'?",
    "Write a polite note to a neighbour about loud music.",
    "What are clouds made of?",
    "How does a vaccine work, in a few words?",
    "Give me a recipe for a simple tomato soup.",
    "What is an ecosystem?",
    "Why do cats purr?",
    "Describe a quiet street at dawn.",
    "What is the boiling point of water at sea level?",
    "Make up a riddle and answer it.",
    "What does it mean to be patient?",
    "How do ships float although they are heavy?",
    "Name two inventions that changed how people travel.",
    "Write a two-line birthday wish for a friend.",
    "What is the purpose of a heart?",
    "How far away is the moon?",
];

const OPENINGS: [&str; 32] = [
    "Alice was beginning to",
    "The Queen looked at her and said",
    "There was a table set out under a tree",
    "Once upon a time there was a little girl who",
    "The Rabbit ran down the path and",
    "It was a very large garden, and",
    "She opened the door and found",
    "The King turned pale and said",
    "At last the Dodo said,",
    "The Cat only grinned when it saw Alice.",
    "In another moment she was",
    "The first thing she heard was",
    "I should like to know",
    "The little house stood in the wood, and",
    "They all sat down together in a ring, and",
    "When she came back to the table",
    "The Mouse did not answer, so",
    "By the time she had caught the book,",
    "You must remember, said the",
    "It was so dark that",
    "The White Knight fell off his horse and",
    "She had never seen such a",
    "After a while the rain stopped, and",
    "What a curious feeling, said Alice,",
    "The Gryphon lifted up both its paws",
    "The players all began at once,",
    "Down the hill came a",
    "The Hatter opened his eyes and",
    "There were doors all round the hall, but",
    "The Red Queen shook her head and",
    "On the other side of the river",
    "Everything was quite still until",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Vec<Script>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    fn text(text: &str) -> Prompt {
        Prompt::Text(text.to_string())
    }

    #[test]
    fn a_file_may_hold_objects_strings_and_plain_lines() {
        let lines = "{\"prompt\": \"a\", \"output_tokens\": 9}\n\n\"b\\n\"\nc d\n\
                     {\"messages\": [{\"role\": \"user\"}]}\n";
        let scripts = file(lines).unwrap();
        assert_eq!(scripts[0], one(text("a"), Some(9)));
        assert_eq!(scripts[1..3], [one(text("b\n"), None), one(text("c d"), None)]);
        let messages = Prompt::Messages(vec![serde_json::json!({"role": "user"})]);
        assert_eq!(scripts[3], one(messages, None));
    }

    #[test]
    fn sharegpts_list_gives_what_its_users_say() {
        let said = "[{\"id\": \"x\", \"conversations\": [\
                    {\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"},\
                    {\"from\": \"human\", \"value\": \"c\"}]}, {\"conversations\": []}]";
        let script = Script { turns: vec![text("a"), text("c")], max_tokens: None };
        assert_eq!(file(said).unwrap(), [script]);
        let error = format!("{:#}", file("[{\"prompt\": \"a\"}, 3]").unwrap_err());
        assert!(error.contains("entry 2: neither"), "{error}");
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        for bad in [
            "{\"prompt\": 1}",
            "{\"text\": \"a\"}",
            "{",
            "{\"prompt\": \"a\", \"messages\": []}",
            "{\"prompt\": \"a\", \"output_tokens\": 0}",
            "{\"conversations\": [{\"from\": \"human\"}]}",
        ] {
            let error = format!("{:#}", file(&format!("fine\n{bad}")).unwrap_err());
            assert!(error.contains("line 2: "), "{error}");
        }
        assert!(file("\n \n").unwrap_err().to_string().contains("holds no prompt"));
    }

    #[test]
    fn a_seed_decides_the_order_and_loses_no_prompt() {
        let order = |seed| {
            let mut scripts = built_in(Endpoint::Chat);
            shuffle(&mut scripts, seed);
            scripts
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
        assert!(built_in(Endpoint::Chat).iter().all(|script| order(7).contains(script)));
    }
}
