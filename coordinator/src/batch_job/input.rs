//! A file of lines, read as a stream: one line in memory, and of one that is too long nothing.

use std::io::{self, BufRead};

/// What a file may begin with that isn't part of its first line.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of a file that say something, with their numbers.
#[derive(Debug)]
pub struct Lines<R> {
    file: R,
    max_bytes: usize,
    number: u32,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLine {
    /// From 1 on, empty lines counted.
    pub number: u32,
    /// Without its end; none where it has more bytes than a line may.
    pub bytes: Option<Vec<u8>>,
}

impl<R: BufRead> Lines<R> {
    /// From its start.
    pub fn new(file: R, max_bytes: usize) -> Self {
        Self { file, max_bytes, number: 0 }
    }

    /// The next line that isn't empty; none at the end.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn next_line(&mut self) -> io::Result<Option<RawLine>> {
        loop {
            let Some(mut bytes) = self.line()? else { return Ok(None) };
            self.number = self.number.saturating_add(1);
            if let (1, Some(line)) = (self.number, &mut bytes)
                && line.starts_with(MARK)
            {
                line.drain(..MARK.len());
            }
            if bytes.as_ref().is_none_or(|line| !line.trim_ascii().is_empty()) {
                return Ok(Some(RawLine { number: self.number, bytes }));
            }
        }
    }

    fn line(&mut self) -> io::Result<Option<Option<Vec<u8>>>> {
        let (mut line, mut is_too_long, mut is_there) = (Vec::new(), false, false);
        loop {
            let chunk = self.file.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            is_there = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let more = &chunk[..end.unwrap_or(chunk.len())];
            // One that ends as Windows does may have one byte more.
            if line.len() + more.len() > self.max_bytes + 1 {
                (line, is_too_long) = (Vec::new(), true);
            }
            if !is_too_long {
                line.extend_from_slice(more);
            }
            let num_read = more.len() + usize::from(end.is_some());
            self.file.consume(num_read);
            if end.is_some() {
                break;
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        is_too_long |= line.len() > self.max_bytes;
        Ok(is_there.then(|| (!is_too_long).then_some(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lines(text: &[u8], max_bytes: usize) -> Vec<(u32, Option<String>)> {
        // Lines go over many fills of so small a buffer.
        let mut lines = Lines::new(BufReader::with_capacity(3, text), max_bytes);
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
        let mut lines = Lines::new(BufReader::new(&long[..]), 4);
        assert_eq!(lines.next_line().unwrap(), Some(RawLine { number: 1, bytes: None }));
        assert_eq!(lines.next_line().unwrap().unwrap().bytes.unwrap(), b"y");
    }
}
