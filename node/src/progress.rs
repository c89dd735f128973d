//! How far loading has come, for whoever watches the terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal; nothing where there is none.
pub struct Bar(ProgressBar);

impl Bar {
    /// An empty bar with a name.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0).with_message(name.to_owned());
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// So many bytes of so many.
    pub fn set(&mut self, loaded_bytes: u64, total_bytes: u64) {
        self.0.set_length(total_bytes);
        self.0.set_position(loaded_bytes);
        if loaded_bytes == total_bytes {
            self.0.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
