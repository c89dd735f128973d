//! Text in which a tag may be under way.

#[derive(Clone, Debug, Default)]
pub(super) struct Held(String);

impl Held {
    pub(super) fn push(&mut self, text: &str) {
        self.0.push_str(text);
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Puts text in front of what is held: it is to be read again.
    pub(super) fn put_back(&mut self, text: &str) {
        self.0.insert_str(0, text);
    }

    /// The first `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> String {
        self.0.drain(..length).collect()
    }

    pub(super) fn take_all(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    /// The text before the first of `tags`, which is passed over, and which it was; without one,
    /// the text in which none can begin.
    pub(super) fn until(&mut self, tags: &[&str]) -> (String, Option<usize>) {
        let found = tags.iter().enumerate().filter_map(|(number, tag)| {
            let at = self.0.find(tag)?;
            Some((at, number))
        });
        if let Some((at, number)) = found.min() {
            let text = self.take(at);
            self.0.drain(..tags[number].len());
            return (text, Some(number));
        }
        let longest = tags.iter().map(|tag| tag.len()).max().unwrap_or(0);
        let from = self.0.ceil_char_boundary(self.0.len().saturating_sub(longest));
        let begins_tag = |at: &usize| tags.iter().any(|tag| tag.starts_with(&self.0[*at..]));
        let ends = self.0[from..].char_indices().map(|(at, _)| from + at);
        let end = ends.clone().find(begins_tag).unwrap_or(self.0.len());
        (self.take(end), None)
    }
}
