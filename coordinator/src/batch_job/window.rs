//! In which order the lines of a window are computed: those that begin alike one after another, so
//! that what they share is computed once and is still there for the last of them.
//!
//! Sorted texts are the leaves of their prefix tree from left to right. Its larger branches go by
//! how much they decode for what they compute of prompts, the most first: so the long answers have
//! begun when the short ones fill what is left. The file that is made of the answers has its own
//! order all the same.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes that two prompts begin with alike, from which on they are of one branch: a few blocks of
/// the KV cache.
const MIN_SHARED_BYTES: usize = 256;

/// Tokens of an answer whose body names no limit: not known, but as likely as any.
const GUESSED_TOKENS: u64 = 128;

/// Bytes of a token, roughly.
const TOKEN_BYTES: u64 = 4;

/// What a body begins its prompt with, and how long an answer it wants.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    n: Option<u64>,
}

struct Leaf<'a> {
    prompt: [&'a str; 2],
    num_tokens: u64,
    at: usize,
}

impl Leaf<'_> {
    fn bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.prompt.iter().flat_map(|part| part.bytes())
    }

    fn len(&self) -> usize {
        self.prompt.iter().map(|part| part.len()).sum()
    }

    fn num_shared(&self, other: &Self) -> usize {
        self.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
    }
}

/// The places of these bodies, in the order in which they are best computed.
pub(crate) fn order<'a>(bodies: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut leaves: Vec<_> = bodies.enumerate().map(|(at, body)| leaf(at, body)).collect();
    leaves.sort_by(|one, other| one.prompt.cmp(&other.prompt).then(one.at.cmp(&other.at)));
    let mut branches: Vec<Branch> = Vec::new();
    for (number, leaf) in leaves.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| leaf.num_shared(&leaves[before]));
        // Whoever begins a branch computes its prompt whole: what is shared with another branch is
        // too little to count on, and is counted for neither.
        let num_shared = before.filter(|num| *num >= MIN_SHARED_BYTES).unwrap_or(0);
        if num_shared == 0 {
            branches.push(Branch { start: number, ..Branch::default() });
        }
        let branch = branches.last_mut().expect("the first leaf begins one");
        branch.num_decoded += leaf.num_tokens;
        branch.num_prompt += ((leaf.len() - num_shared) as u64 / TOKEN_BYTES).max(1);
        branch.end = number + 1;
    }
    // Multiplied out, so that nothing is divided by what may be none.
    branches.sort_by(|one, other| {
        let more =
            |it: &Branch, than: &Branch| u128::from(it.num_decoded) * u128::from(than.num_prompt);
        more(other, one).cmp(&more(one, other))
    });
    let leaves = &leaves;
    branches.iter().flat_map(|it| leaves[it.start..it.end].iter().map(|leaf| leaf.at)).collect()
}

#[derive(Default)]
struct Branch {
    start: usize,
    end: usize,
    num_decoded: u64,
    num_prompt: u64,
}

fn leaf(at: usize, body: &str) -> Leaf<'_> {
    let Ok(peek) = serde_json::from_str::<Peek<'_>>(body) else {
        return Leaf { prompt: [body, ""], num_tokens: GUESSED_TOKENS, at };
    };
    let [tools, prompt] = [peek.tools, peek.messages.or(peek.prompt)];
    let tokens = peek.max_completion_tokens.or(peek.max_tokens).unwrap_or(GUESSED_TOKENS);
    Leaf {
        prompt: [tools.map_or("", RawValue::get), prompt.map_or("", RawValue::get)],
        num_tokens: tokens.saturating_mul(peek.n.unwrap_or(1)).min(1 << 32),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order_of(bodies: &[serde_json::Value]) -> Vec<usize> {
        let bodies: Vec<_> = bodies.iter().map(ToString::to_string).collect();
        order(bodies.iter().map(String::as_str))
    }

    #[test]
    fn those_that_begin_alike_stand_together_and_every_line_is_there_once() {
        let prefix = |which: usize| format!("{which}").repeat(400);
        let bodies: Vec<_> = (0..120)
            .map(|number| {
                let prompt = format!("{}{}", prefix(number % 3), number / 3);
                json!({"model": "m", "prompt": prompt, "max_tokens": 8})
            })
            .collect();
        let order = order_of(&bodies);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..120).collect::<Vec<_>>());
        let changes = order.windows(2).filter(|two| two[0] % 3 != two[1] % 3).count();
        assert_eq!(changes, 2, "{order:?}");
    }

    #[test]
    fn whoever_decodes_most_for_its_prompt_goes_first_but_never_apart_from_its_branch() {
        let body = |prefix: &str, end: &str, tokens: usize| {
            let text = prefix.repeat(300) + end;
            json!({"messages": [{"role": "user", "content": text}], "max_tokens": tokens})
        };
        let bodies = [
            body("a", "1", 1),
            body("b", "1", 50),
            body("a", "2", 1),
            body("c", "1", 9),
            body("b", "2", 50),
        ];
        assert_eq!(order_of(&bodies), [1, 4, 3, 0, 2]);
    }

    /// What short prompts begin with alike says nothing of what they compute.
    #[test]
    fn of_short_prompts_the_longest_answers_go_first_also_where_some_are_the_same() {
        let prompts = ["a cat was", "a cat was", "a cat was", "down a cat", "down a cat"];
        let body = |(prompt, tokens)| json!({"prompt": prompt, "max_tokens": tokens});
        let bodies: Vec<_> = prompts.into_iter().zip([16, 64, 20, 60, 30]).map(body).collect();
        assert_eq!(order_of(&bodies), [1, 3, 2, 4, 0]);
    }

    #[test]
    fn what_is_no_body_has_its_place_too() {
        let bodies = [json!(7), json!({"prompt": [1, 2, 3]}), json!({"n": "x"}), json!({})];
        let mut order = order_of(&bodies);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
    }
}
