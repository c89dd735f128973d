//! Lines of a file, however long, in memory that has a bound.

use std::io::{self, BufRead as _, BufReader, Read};

/// How a line was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Line {
    /// It is there, with what ends it.
    Whole,
    /// Only its beginning is there; the rest was passed over.
    TooLong,
    /// There is none.
    End,
}

/// Reads lines and knows where it is.
pub struct Lines<R> {
    input: BufReader<R>,
    /// Read before, to be read again: what was taken back, from `taken` on.
    again: Vec<u8>,
    taken: usize,
    max_bytes: usize,
    /// Bytes before the next line.
    pub bytes: u64,
    /// Lines before the next line.
    pub lines: u64,
}

impl<R: Read> Lines<R> {
    /// Reads on where so many bytes and lines were read.
    pub fn new(input: R, max_bytes: usize, bytes: u64, lines: u64) -> Self {
        let input = BufReader::with_capacity(1 << 16, input);
        Self { input, again: Vec::new(), taken: 0, max_bytes, bytes, lines }
    }

    /// Appends the next line to `line`, which gets no longer than the bound.
    pub fn read(&mut self, line: &mut Vec<u8>) -> io::Result<Line> {
        let start = self.bytes;
        let (mut too_long, mut ended) = (false, false);
        while !ended {
            let from_again = self.taken < self.again.len();
            let buffer =
                if from_again { &self.again[self.taken..] } else { self.input.fill_buf()? };
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let num = end.map_or(buffer.len(), |end| end + 1);
            let room = self.max_bytes.saturating_sub(line.len());
            too_long |= num > room;
            line.extend_from_slice(&buffer[..num.min(room)]);
            ended = end.is_some();
            if from_again {
                self.taken += num;
            } else {
                self.input.consume(num);
            }
            self.bytes += num as u64;
        }
        if self.bytes == start {
            return Ok(Line::End);
        }
        if start == 0 && line.starts_with(b"\xef\xbb\xbf") {
            // A byte-order mark is no part of the first line.
            line.drain(..3);
        }
        self.lines += 1;
        Ok(if too_long { Line::TooLong } else { Line::Whole })
    }

    /// Passes over all before a place behind this one.
    pub fn pass_to(&mut self, bytes: u64, lines: u64) -> io::Result<()> {
        let num = bytes.saturating_sub(self.bytes);
        let passed = io::copy(&mut self.input.by_ref().take(num), &mut io::sink())?;
        if passed < num {
            let said = format!("it ends before byte {bytes}, where an earlier run was");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
        }
        (self.bytes, self.lines) = (bytes, lines);
        Ok(())
    }

    /// Takes back the newest lines that were read, so that they are read again.
    pub(crate) fn take_back(&mut self, text: &[u8], num_lines: u64) {
        let mut again = text.to_vec();
        again.extend_from_slice(&self.again[self.taken..]);
        (self.again, self.taken) = (again, 0);
        self.bytes -= text.len() as u64;
        self.lines -= num_lines;
    }
}

/// Takes `\n` or `\r\n` away, once.
pub fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_any_length_takes_no_more_than_the_bound() {
        let mut text = b"\xef\xbb\xbfone\r\n".to_vec();
        text.extend(vec![b'x'; 1 << 20]);
        text.extend(b"\n\nlast");
        let mut lines = Lines::new(&text[..], 100, 0, 0);
        let mut read = Vec::new();
        loop {
            let mut line = Vec::new();
            let how = lines.read(&mut line).unwrap();
            assert!(line.capacity() <= 256);
            if how == Line::End {
                break;
            }
            read.push((how, without_end(&line).len()));
        }
        let expected = [(Line::Whole, 3), (Line::TooLong, 100), (Line::Whole, 0), (Line::Whole, 4)];
        assert_eq!(read, expected);
        assert_eq!((lines.bytes, lines.lines), (text.len() as u64, 4));
    }

    #[test]
    fn lines_that_are_taken_back_are_read_again() {
        let mut lines = Lines::new(&b"a\nb\nc\n"[..], 100, 0, 0);
        let mut text = Vec::new();
        lines.read(&mut text).unwrap();
        lines.read(&mut text).unwrap();
        lines.take_back(b"b\n", 1);
        assert_eq!((lines.bytes, lines.lines), (2, 1));
        let mut rest = Vec::new();
        while lines.read(&mut rest).unwrap() != Line::End {}
        assert_eq!(rest, b"b\nc\n");
        assert_eq!((lines.bytes, lines.lines), (6, 3));
    }
}
