//! A file of lines, read as a stream: one line in memory, and of one that is too long nothing.

use std::io::{self, Read};

use rows::lines::{self, without_end};

/// The lines of a file that say something, with their numbers.
pub(crate) struct Lines<R> {
    lines: lines::Lines<R>,
    max_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawLine {
    /// From 1 on, empty lines counted.
    pub number: u32,
    /// Without its end; none where it has more bytes than a line may.
    pub bytes: Option<Vec<u8>>,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(file: R, max_bytes: usize) -> Self {
        // One that ends as Windows' do has two bytes more.
        Self { lines: lines::Lines::new(file, max_bytes + 2, 0, 0), max_bytes }
    }

    /// The next line that isn't empty; none at the end.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn next_line(&mut self) -> io::Result<Option<RawLine>> {
        loop {
            let mut line = Vec::new();
            let how = self.lines.read(&mut line)?;
            if how == lines::Line::End {
                return Ok(None);
            }
            line.truncate(without_end(&line).len());
            let is_too_long = how == lines::Line::TooLong || line.len() > self.max_bytes;
            if is_too_long || !line.trim_ascii().is_empty() {
                let number = u32::try_from(self.lines.lines).unwrap_or(u32::MAX);
                return Ok(Some(RawLine { number, bytes: (!is_too_long).then_some(line) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], max_bytes: usize) -> Vec<(u32, Option<String>)> {
        let mut lines = Lines::new(text, max_bytes);
        let mut found = Vec::new();
        while let Some(RawLine { number, bytes }) = lines.next_line().unwrap() {
            found.push((number, bytes.map(|line| String::from_utf8(line).unwrap())));
        }
        found
    }

    #[test]
    fn lines_end_as_unix_or_windows_end_them_and_empty_ones_count_only() {
        let some = |number, text: &str| (number, Some(text.to_owned()));
        assert_eq!(lines(b"", 9), []);
        assert_eq!(lines(b"\n\r\n  \n", 9), []);
        assert_eq!(lines(b"ab\r\n\ncd", 9), [some(1, "ab"), some(3, "cd")]);
        assert_eq!(lines("\u{feff}ab\ncd\n".as_bytes(), 9), [some(1, "ab"), some(2, "cd")]);
        assert_eq!(lines("\u{feff}".as_bytes(), 9), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_is_read() {
        let some = |number, text: &str| (number, Some(text.to_owned()));
        assert_eq!(lines(b"abcde\nabcd\r\nx", 4), [(1, None), some(2, "abcd"), some(3, "x")]);
        let long = [&vec![b'x'; 1 << 20][..], b"\ny"].concat();
        let mut lines = Lines::new(&long[..], 4);
        assert_eq!(lines.next_line().unwrap(), Some(RawLine { number: 1, bytes: None }));
        assert_eq!(lines.next_line().unwrap().unwrap().bytes.unwrap(), b"y");
    }
}
