//! How far loading has come, for whoever watches the terminal, and fetching, for the coordinator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use protocol::message::{CoordinatorMsg, FetchProgress, Loading};

use crate::actor::Node;
use crate::fetch::Given;

/// Between two reports of how far something has come.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Tells the coordinator how much of what is fetched has come; when this is gone, nothing is.
pub(crate) struct FetchReport {
    node: Arc<Node>,
    is_warming: bool,
    last: Option<Instant>,
}

impl FetchReport {
    /// Nothing is said before something is fetched.
    pub(crate) fn new(node: &Arc<Node>, is_warming: bool) -> Self {
        Self { node: Arc::clone(node), is_warming, last: None }
    }

    pub(crate) fn set(&mut self, given: Given) {
        if self.last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
            self.last = Some(Instant::now());
            self.tell(given);
        }
    }

    fn tell(&self, Given { num_bytes, of_bytes, num_sources }: Given) {
        let (node, session) = (self.node.report.node, self.node.report.session);
        let is_warming = self.is_warming;
        let fetching =
            FetchProgress { node, session, is_warming, num_bytes, of_bytes, num_sources };
        let gate = self.node.gate;
        tokio::spawn(gate.tell(CoordinatorMsg::Fetching(fetching.into())));
    }
}

impl Drop for FetchReport {
    fn drop(&mut self) {
        if self.last.is_some() {
            self.tell(Given::default());
        }
    }
}

/// A bar on a terminal; nothing where there is none.
pub(crate) struct Bar {
    bar: ProgressBar,
    name: String,
    is_of_kernels: bool,
}

impl Bar {
    /// An empty bar with a name.
    pub(crate) fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        show(&bar, &format!("{name} [{{bar:30}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}}"));
        Self { bar, name: name.to_owned(), is_of_kernels: false }
    }

    pub(crate) fn set(&mut self, loading: Loading) {
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
