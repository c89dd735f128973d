//! Hands bytes that libFuzzer makes up to the reader that the variable READER names.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "../readers.rs"]
mod readers;

fuzz_target!(|bytes: &[u8]| {
    static READER: OnceLock<fn(&[u8])> = OnceLock::new();
    let read = READER.get_or_init(|| {
        let wanted = std::env::var("READER").unwrap_or_default();
        let names: Vec<_> = readers::READERS.iter().map(|(name, _)| *name).collect();
        let found = readers::READERS.iter().find(|(name, _)| *name == wanted);
        found.unwrap_or_else(|| panic!("READER must be one of {}", names.join(", "))).1
    });
    read(bytes);
});
