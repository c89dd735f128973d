//! A node that its coordinator has started ends with it, however that one ends.

use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use tokio::sync::oneshot;

/// What a node gets to say goodbye once its coordinator is gone. A driver that compiles a kernel
/// can't be interrupted, and whoever takes the place of this process waits for its lock.
const GRACE: Duration = Duration::from_secs(5);

/// Resolves when standard input ends: it is a pipe whose other end only the coordinator holds, so
/// this is heard of a killed one too, and from the first moment on. A process that is still there
/// five seconds later is killed.
pub fn gone() -> impl Future<Output = ()> {
    let (tell, told) = oneshot::channel();
    // A thread of its own: no runtime waits for it, and it waits for no runtime.
    let watch = move || {
        // An error is an end as well.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = tell.send(());
        std::thread::sleep(GRACE);
        let _ = raise(Signal::SIGKILL);
    };
    let watching = std::thread::Builder::new().name("parent".into()).spawn(watch);
    async move {
        if watching.is_ok() {
            // Fails when the thread is gone, which is no reason to stay.
            let _ = told.await;
        }
    }
}
