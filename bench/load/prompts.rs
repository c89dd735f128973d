//! What a load asks: a built-in list, or a file of the user's.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::client::request::{Endpoint, Prompt};

/// The built-in prompts for an endpoint: questions for a chat, openings for a completion.
pub fn built_in(endpoint: Endpoint) -> Vec<Prompt> {
    let texts: &[&str] = match endpoint {
        Endpoint::Chat => &QUESTIONS,
        Endpoint::Completions => &OPENINGS,
    };
    texts.iter().map(|text| Prompt::Text((*text).to_string())).collect()
}

/// Reads a file with one prompt a line: a JSON object with `prompt` or `messages`, a JSON
/// string, or plain text. Empty lines are skipped.
///
/// # Errors
/// When it can't be read, a line can't be understood, or there is no prompt in it.
pub fn read(path: &Path) -> Result<Vec<Prompt>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            let prompt = parse(line).with_context(|| format!("{name}, line {}", index + 1))?;
            prompts.push(prompt);
        }
    }
    if prompts.is_empty() {
        bail!("{name} holds no prompt");
    }
    Ok(prompts)
}

/// Puts prompts in an order that `seed` decides.
pub fn shuffle(prompts: &mut [Prompt], seed: u64) {
    let mut state = seed;
    for last in (1..prompts.len()).rev() {
        // SplitMix64. The remainder's bias is of no account for lists that fit in memory.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        prompts.swap(last, (bits % (last as u64 + 1)) as usize);
    }
}

fn parse(line: &str) -> Result<Prompt> {
    if !line.starts_with(['{', '"']) {
        return Ok(Prompt::Text(line.to_string()));
    }
    match serde_json::from_str(line)? {
        Value::String(text) => Ok(Prompt::Text(text)),
        mut object => match (object["prompt"].take(), object["messages"].take()) {
            (Value::String(text), Value::Null) => Ok(Prompt::Text(text)),
            (Value::Null, Value::Array(messages)) => Ok(Prompt::Messages(messages)),
            _ => Err(anyhow!("neither a `prompt` that is text nor a list of `messages`")),
        },
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

    fn file(text: &str) -> Result<Vec<Prompt>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn a_file_may_hold_objects_strings_and_plain_lines() {
        let lines =
            "{\"prompt\": \"a\"}\n\n\"b\\n\"\nc d\n{\"messages\": [{\"role\": \"user\"}]}\n";
        let prompts = file(lines).unwrap();
        let text = |text: &str| Prompt::Text(text.to_string());
        assert_eq!(prompts[..3], [text("a"), text("b\n"), text("c d")]);
        assert_eq!(prompts[3], Prompt::Messages(vec![serde_json::json!({"role": "user"})]));
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        for bad in
            ["{\"prompt\": 1}", "{\"text\": \"a\"}", "{", "{\"prompt\": \"a\", \"messages\": []}"]
        {
            let error = format!("{:#}", file(&format!("fine\n{bad}")).unwrap_err());
            assert!(error.contains("line 2: "), "{error}");
        }
        assert!(file("\n \n").unwrap_err().to_string().contains("holds no prompt"));
    }

    #[test]
    fn a_seed_decides_the_order_and_loses_no_prompt() {
        let order = |seed| {
            let mut prompts = built_in(Endpoint::Chat);
            shuffle(&mut prompts, seed);
            prompts
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
        assert!(built_in(Endpoint::Chat).iter().all(|prompt| order(7).contains(prompt)));
    }
}
