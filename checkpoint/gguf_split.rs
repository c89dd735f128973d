//! GGUF files in parts, as llama.cpp's tools cut them: `NAME-00001-of-00003.gguf` and so on. The
//! first has the keys; each has some of the tensors.

use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::gguf::{self, Header, Value};
use crate::mapped::Mapped;

/// Larger models have some dozens.
const MAX_PARTS: u64 = 1024;

/// A file that is one of several parts of a model, by its name.
struct Part<'a> {
    /// What all of them begin with.
    name: &'a str,
    count: u64,
}

impl<'a> Part<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        let (rest, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| -> Option<u64> {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        digits(number)?;
        Some(Self { name, count: digits(count)? })
    }

    fn path(&self, beside: &Path, number: u64) -> PathBuf {
        beside.with_file_name(format!("{}-{number:05}-of-{:05}.gguf", self.name, self.count))
    }
}

/// What a model in parts is called, and the first of them.
pub(crate) fn whole(path: &Path) -> Option<(String, PathBuf)> {
    let part = Part::of(path)?;
    Some((part.name.to_owned(), part.path(path, 1)))
}

/// The first of these files, if all of them are parts of one model.
pub(crate) fn of_one_model(paths: &[PathBuf]) -> Option<PathBuf> {
    let (_, first) = whole(paths.first()?)?;
    let is_of_it = |path: &PathBuf| whole(path).is_some_and(|(_, other)| other == first);
    paths.iter().all(is_of_it).then_some(first)
}

/// The other parts of a model of which `header` is the first's: their tensors go to its own.
pub(crate) fn others(path: &Path, header: &mut Header) -> Result<Vec<Mapped>, CheckpointError> {
    let count = match header.keys.get("split.count") {
        Some(Value::Unsigned(count @ 2..)) => *count,
        _ => return Ok(Vec::new()),
    };
    let malformed = |path: &Path, problem: String| CheckpointError::Malformed {
        path: path.to_owned(),
        problem,
    };
    let part = Part::of(path).filter(|part| part.count == count && count <= MAX_PARTS);
    let Some(part) = part else {
        let problem = format!(
            "split.count is {count}, the file of its first part must be called \
             NAME-00001-of-{count:05}.gguf"
        );
        return Err(malformed(path, problem));
    };
    check(path, header, (1, count))?;
    let mut files = Vec::new();
    for number in 2..=count {
        let path = part.path(path, number);
        if !path.exists() {
            return Err(malformed(&path, format!("part {number} of {count} is missing")));
        }
        let mapped = Mapped::open(&path)?;
        let other = gguf::read(&mapped)?;
        check(&path, &other, (number, count))?;
        files.push(mapped);
        for (name, mut stored) in other.tensors {
            stored.file = files.len();
            if header.tensors.insert(name.clone(), stored).is_some() {
                return Err(malformed(&path, format!("tensor {name} is in another part, too")));
            }
        }
    }
    let expected = match header.keys.get("split.tensors.count") {
        Some(Value::Unsigned(expected)) => Some(*expected),
        Some(Value::Signed(expected)) => u64::try_from(*expected).ok(),
        _ => None,
    };
    let found = header.tensors.len() as u64;
    match expected.filter(|expected| *expected != found) {
        None => Ok(files),
        Some(expected) => Err(malformed(
            path,
            format!("its {count} parts hold {found} tensors, split.tensors.count says {expected}"),
        )),
    }
}

/// A part says which it is, counted from 0, and of how many.
fn check(path: &Path, header: &Header, (number, count): (u64, u64)) -> Result<(), CheckpointError> {
    let said = |key: &str| match header.keys.get(key) {
        Some(Value::Unsigned(value)) => Some(*value),
        _ => None,
    };
    let (own, of) = (said("split.no"), said("split.count"));
    if (own, of) == (Some(number - 1), Some(count)) {
        return Ok(());
    }
    let name = |value: Option<u64>| value.map_or_else(|| "nothing".to_owned(), |it| it.to_string());
    Err(CheckpointError::Malformed {
        path: path.to_owned(),
        problem: format!(
            "split.no says {} and split.count {}, part {number} of {count} has {} and {count}: it \
             is another model's",
            name(own),
            name(of),
            number - 1
        ),
    })
}
