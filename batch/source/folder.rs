//! A directory of texts: each file is a row, in the order of their paths.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rows::Unreadable;
use rows::row::{Cells, Column, Kind};
use serde_json::Value;

use super::{Item, Position, Reading, Source};

pub(super) struct Folder {
    root: PathBuf,
    /// What is to be looked at, the next at the front. Only directories on the way are listed.
    left: VecDeque<PathBuf>,
    /// The newest file that an earlier run read: the bytes of its name.
    behind: Option<Vec<u8>>,
    max_bytes: usize,
    rows: u64,
}

impl Folder {
    pub(super) fn open(root: &Path, at: &Position, reading: &Reading) -> Self {
        Self {
            root: root.to_owned(),
            left: VecDeque::from([root.to_owned()]),
            behind: (at.rows > 0).then(|| bytes_of(&at.mark)),
            max_bytes: reading.max_row_bytes,
            rows: at.rows,
        }
    }

    /// The next file; none behind the last.
    fn next_file(&mut self) -> Result<Option<PathBuf>> {
        while let Some(path) = self.left.pop_front() {
            // Names that begin with a dot are hidden, as they are from `ls`.
            let is_hidden =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if is_hidden && path != self.root {
                continue;
            }
            let kind = fs::metadata(&path).with_context(|| format!("{}", path.display()))?;
            if kind.is_dir() && !self.leads_back(&path) {
                let named = || format!("can't list {}", path.display());
                let entries = fs::read_dir(&path).with_context(named)?;
                let mut inside = Vec::new();
                for entry in entries {
                    inside.push(entry.with_context(named)?.path());
                }
                inside.sort();
                inside.into_iter().rev().for_each(|path| self.left.push_front(path));
            } else if kind.is_file() {
                let name = self.name(&path).as_os_str().as_encoded_bytes();
                let behind = self.behind.as_deref();
                if !behind.is_some_and(|behind| parts(name).le(parts(behind))) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    /// Whether it is a link to a directory that holds it, which would be read again and again.
    fn leads_back(&self, path: &Path) -> bool {
        let holding = path.ancestors().skip(1).take_while(|it| it.starts_with(&self.root));
        let mut holding = holding.filter_map(|it| it.canonicalize().ok());
        path.is_symlink()
            && path.canonicalize().is_ok_and(|real| holding.any(|it| it.starts_with(&real)))
    }

    fn name<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    fn text(&self, path: &Path) -> Result<Result<String, Unreadable>> {
        let mut bytes = Vec::new();
        let named = || format!("can't read {}", path.display());
        let file = File::open(path).with_context(named)?;
        file.take(self.max_bytes as u64 + 1).read_to_end(&mut bytes).with_context(named)?;
        let name = path.display();
        if bytes.len() > self.max_bytes {
            let why = format!("{name} is longer than {} bytes", self.max_bytes);
            return Ok(Err(Unreadable::new(why, &bytes)));
        }
        let text = String::from_utf8(bytes)
            .map_err(|cause| Unreadable::new(format!("{name} is no UTF-8"), cause.as_bytes()));
        Ok(text.map(|text| text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()))
    }
}

impl Source for Folder {
    fn columns(&self) -> Option<Vec<Column>> {
        Some(["file", "text"].map(|name| Column::new(name, Kind::Text)).into())
    }

    fn next(&mut self) -> Result<Option<Item>> {
        let Some(path) = self.next_file()? else { return Ok(None) };
        let text = self.text(&path)?;
        let name = self.name(&path);
        let (mark, name) = (mark_of(name), name.to_string_lossy().into_owned());
        self.rows += 1;
        let after = Position { rows: self.rows, mark, ..Position::default() };
        let cells = text.map(|text| {
            let cells = [("file", name), ("text", text)];
            cells.map(|(name, text)| (name.to_owned(), Value::String(text))).into_iter().collect()
        });
        Ok(Some(Item { cells: cells as Result<Cells, _>, line: 0, after }))
    }
}

/// A name as a position keeps it: one that is no text as a character for each of its bytes, behind
/// one that no name has.
fn mark_of(name: &Path) -> String {
    let bytes = name.as_os_str().as_encoded_bytes();
    name.to_str().map_or_else(
        || std::iter::once('\0').chain(bytes.iter().map(|byte| char::from(*byte))).collect(),
        str::to_owned,
    )
}

/// The bytes of the name that a position keeps.
fn bytes_of(mark: &str) -> Vec<u8> {
    let characters = mark.strip_prefix('\0').map(str::chars);
    let bytes = characters.and_then(|it| it.map(|it| u8::try_from(it).ok()).collect());
    bytes.unwrap_or_else(|| mark.into())
}

/// What paths are ordered by.
fn parts(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| std::path::is_separator(char::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read_all, said};
    use super::*;
    use crate::testing::reading;

    #[test]
    fn files_are_rows_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("b/2.txt", b"two");
        write("b/1.txt", "\u{feff}one".as_bytes());
        write("a.md", b"\xff");
        write("c.txt", &[b'x'; 2000]);
        write(".hidden", b"no");
        write("b.txt", b"dot");
        let (_runtime, mut reading) = reading();
        reading.max_row_bytes = 1000;
        let items = read_all(|at| Box::new(Folder::open(dir.path(), at, &reading)) as _);
        let said: Vec<_> = items.iter().map(said).collect();
        assert!(said[0].contains("a.md is no UTF-8"), "{said:?}");
        assert_eq!(said[1], r#"{"file":"b/1.txt","text":"one"}"#);
        assert_eq!(said[2], r#"{"file":"b/2.txt","text":"two"}"#);
        assert_eq!(said[3], r#"{"file":"b.txt","text":"dot"}"#);
        assert!(said[4].contains("longer than 1000 bytes"), "{said:?}");
        assert_eq!(said.len(), 5);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_back_is_not_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        ["a", "b/1"].into_iter().for_each(|it| fs::write(dir.path().join(it), "text").unwrap());
        symlink("..", dir.path().join("b/back")).unwrap();
        symlink("b", dir.path().join("c")).unwrap();
        let (_runtime, reading) = reading();
        let items = read_all(|at| Box::new(Folder::open(dir.path(), at, &reading)) as _);
        let said: Vec<_> = items.iter().map(said).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(said[2], r#"{"file":"c/1","text":"text"}"#);
    }

    /// Other systems have no such names.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_whose_names_are_no_text_are_read_once() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"\x80"[..], b"\x81/1", "é".as_bytes(), b"\xff", b"z"] {
            let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        let (_runtime, reading) = reading();
        let items = read_all(|at| {
            let kept = serde_json::to_string(at).unwrap();
            let at = serde_json::from_str(&kept).unwrap();
            Box::new(Folder::open(dir.path(), &at, &reading)) as _
        });
        assert_eq!(items.len(), 5);
    }
}
