//! How far loading has come, for whoever watches the terminal.

use indicatif::{ProgressBar, ProgressStyle};
use protocol::message::Loading;

/// A bar on a terminal; nothing where there is none.
pub struct Bar {
    bar: ProgressBar,
    name: String,
    is_of_kernels: bool,
}

impl Bar {
    /// An empty bar with a name.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        show(&bar, &format!("{name} [{{bar:30}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}}"));
        Self { bar, name: name.to_owned(), is_of_kernels: false }
    }

    /// So far.
    pub fn set(&mut self, loading: Loading) {
        let (done, total) = match loading.num_kernels {
            _ if loading.fetch_bytes > 0 => (loading.fetched_bytes, loading.fetch_bytes),
            0 => (loading.loaded_bytes, loading.total_bytes),
            total => (loading.num_compiled.into(), total.into()),
        };
        if loading.num_kernels > 0 && !self.is_of_kernels {
            self.is_of_kernels = true;
            show(&self.bar, &format!("{} [{{bar:30}}] {{pos}}/{{len}} kernels", self.name));
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

fn show(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
