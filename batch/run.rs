//! A run: rows are read, asked for, committed and written, each on its own; none waits for another
//! longer than a bounded number of rows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::answerer::Answerer;
use crate::asking::{Asking, Plan};
use crate::clean::{Cleaner, Declared, Seen, Tokens};
use crate::journal::{Begin, Counts, DoneRow, Journal, Purpose, Resumed};
use crate::progress::Progress;
use crate::reading::{self, Reader, What, Work};
use crate::sink::{Writing, beside};
use crate::source::{self, Position, Reading};
use crate::writing::{Settled, Writer};

/// Rows that may be read and not yet all before them done: one that takes long must not let all
/// others go on for ever.
pub const MAX_AHEAD: usize = 1 << 14;
/// Rows of one commit, and how long the first waits for the others.
const ROWS_TOGETHER: usize = 256;
const WAIT_FOR_OTHERS: Duration = Duration::from_millis(20);
/// Groups of rows between the thread that reads and who asks.
const MAX_GROUPS: usize = 4;

/// What is to be done.
pub struct Job {
    /// Where rows come from.
    pub input: Address,
    /// Where they go.
    pub output: Address,
    /// How they are asked for.
    pub plan: Plan,
    /// What is done with them before.
    pub clean: Declared,
    /// Who counts tokens, where cleaning wants it.
    pub tokens: Option<Box<dyn Tokens>>,
    /// The column whose value is another in each row.
    pub id: Option<String>,
    /// Requests at once.
    pub concurrency: usize,
    /// Rows that may be read and not yet all before them done.
    pub ahead: usize,
    /// What has been done is kept there until the end.
    pub journal: PathBuf,
    /// What rows without an answer came to.
    pub rejects: PathBuf,
    /// What the run is: one that goes on must be the same.
    pub purpose: Purpose,
    /// Whether it may go on.
    pub begin: Begin,
    /// Files that say, where there is nothing to go on with, that nothing is left to do either.
    pub ended: Vec<PathBuf>,
    /// What sources are opened with.
    pub reading: Reading,
    /// What sinks are opened with; the run fills in its own name.
    pub writing: Writing,
}

/// The first reason to stop counts.
#[derive(Clone, Default)]
struct Stop {
    token: CancellationToken,
    cause: Arc<Mutex<Option<Error>>>,
}

impl Stop {
    fn because(&self, cause: Error) {
        self.cause.lock().expect("nobody panics with it").get_or_insert(cause);
        self.token.cancel();
    }

    fn check(&self) -> Result<()> {
        match self.cause.lock().expect("nobody panics with it").take() {
            Some(cause) => Err(cause),
            None => Ok(()),
        }
    }
}

/// Does a job, or as much as can be done until `interrupted` says why to stop. What it has done is
/// kept for a run that goes on.
///
/// # Errors
/// When it isn't all done.
pub async fn run(
    job: Job,
    answerer: Arc<dyn Answerer>,
    progress: Arc<Progress>,
    interrupted: impl Future<Output = Error> + Send + 'static,
) -> Result<Counts> {
    let (mut journal, mut resumed) = Journal::open(&job.journal, &job.purpose, job.begin).await?;
    // Only now nobody else can be about to make them.
    if resumed.is_new
        && let Some(path) = job.ended.iter().find(|path| path.exists())
    {
        journal.remove(false).await.context("the journal can't be removed")?;
        bail!("{} is there already: another process has just ended this run", path.display());
    }
    if job.input.may_change() && !resumed.is_new {
        // Behind its position a row may be another now: nothing of it has been written yet.
        journal.forget_from(resumed.position.rows).await?;
        resumed = journal.resumed(&job.purpose).await?;
    }
    progress.resume(resumed.counts);
    let tells_nothing = !matches!(job.output, Address::File(..));
    let ended = run_with(&mut journal, resumed, job, answerer, &progress, interrupted).await;
    let counts = progress.counts();
    // Whoever couldn't begin leaves nothing behind that stands in the way of the next.
    if ended.is_ok() || counts.total() == 0 {
        let mark = ended.is_ok() && tells_nothing;
        journal.remove(mark).await.context("the journal can't be removed")?;
    }
    ended.map(|()| counts)
}

async fn run_with(
    journal: &mut Journal,
    resumed: Resumed,
    job: Job,
    answerer: Arc<dyn Answerer>,
    progress: &Arc<Progress>,
    interrupted: impl Future<Output = Error> + Send + 'static,
) -> Result<()> {
    let (stop, runtime) = (Stop::default(), Handle::current());
    let ahead = Arc::new(Semaphore::new(job.ahead));
    let (rows_sender, rows) = mpsc::channel(MAX_GROUPS);
    let (layout_sender, layout) = tokio::sync::oneshot::channel();
    let input = Input {
        address: job.input,
        reading: job.reading,
        clean: job.clean,
        tokens: job.tokens,
        id: job.id,
        seen: beside(&job.journal, ".seen"),
    };
    let (id, cleaned) = (input.id.clone(), input.clean.columns().to_vec());
    let (position, kept) = (resumed.position.clone(), resumed.kept);
    let reader = {
        let (ahead, progress, runtime) = (ahead.clone(), progress.clone(), runtime.clone());
        let resumed = resumed.clone();
        move || {
            let reader = input.open(&resumed, ahead, rows_sender, progress, runtime)?;
            let _ = layout_sender.send(reader.source.columns());
            reader.run()
        }
    };
    let reader = thread("reader", &stop, reader)?;
    // The thread ends without a word when it can't open its source: then there is nothing to write.
    let Ok(columns) = layout.await else {
        reader.await?;
        return stop.check();
    };
    if let Some(columns) = &columns
        && let Some(why) = job.plan.problem(columns, id.as_deref(), &cleaned)
    {
        bail!("{why}");
    }

    let (settled_sender, settled) = watch::channel::<Settled>((position.rows, false));
    let (kept_sender, mut kept) = watch::channel(kept);
    let mut writing = job.writing;
    writing.job = resumed.job.clone();
    writing.stop = stop.token.clone();
    let writer = Writer {
        output: job.output,
        layout: job.plan.layout(columns),
        journal: journal.reader().await?,
        settled,
        kept: kept_sender,
        rejects: job.rejects,
        writing,
        runtime: runtime.clone(),
    };
    let mut writer = thread("writer", &stop, move || writer.run())?;

    let (done_sender, mut done) = mpsc::channel(ROWS_TOGETHER * 2);
    let asking = Arc::new(Asking { plan: job.plan, answerer, progress: progress.clone() });
    let dispatched =
        tokio::spawn(dispatch(rows, asking, job.concurrency, done_sender, stop.clone()));

    let interrupting = tokio::spawn({
        let stop = stop.clone();
        async move { stop.because(interrupted.await) }
    });
    let mut prefix = Prefix { position, waiting: BTreeMap::new() };
    let mut counts = resumed.counts;
    loop {
        let mut together = Vec::new();
        let num = tokio::select! {
            num = done.recv_many(&mut together, ROWS_TOGETHER) => num,
            Ok(()) = kept.changed() => {
                let now = *kept.borrow_and_update();
                journal.keep(now).await?;
                continue;
            }
        };
        if num == 0 {
            break;
        }
        let until = Instant::now() + WAIT_FOR_OTHERS;
        while together.len() < ROWS_TOGETHER {
            let room = ROWS_TOGETHER - together.len();
            match timeout_at(until, done.recv_many(&mut together, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        let mut records = Vec::with_capacity(together.len());
        let before = prefix.position.rows;
        for Done { row, after, record } in together {
            prefix.add(row, after);
            records.extend(record);
        }
        let advanced = prefix.position.rows - before;
        let position = (advanced > 0).then_some(&prefix.position);
        if let Err(cause) = journal.commit(&records, position).await {
            // Nothing is done that isn't on the disk.
            stop.because(cause.context("what was done can't be written to the journal"));
            break;
        }
        records.iter().for_each(|record| counts.add(record.state, 1));
        progress.set_counts(counts);
        ahead.add_permits(usize::try_from(advanced)?);
        settled_sender.send_replace((prefix.position.rows, false));
    }
    ahead.close();
    drop(done);
    dispatched.await?;
    // A reader may wait for a terminal or a database; nobody waits for it where nothing goes on.
    tokio::select! {
        ended = reader => ended?,
        () = stop.token.cancelled() => {}
    }
    let all_done = !stop.token.is_cancelled();
    if all_done {
        settled_sender.send_replace((prefix.position.rows, true));
    }
    // Where not all is done, its end tells the writer so.
    drop(settled_sender);
    loop {
        tokio::select! {
            ended = &mut writer => break ended?,
            Ok(()) = kept.changed() => {
                let now = *kept.borrow_and_update();
                journal.keep(now).await?;
            }
        }
    }
    interrupting.abort();
    if all_done && prefix.waiting.is_empty() {
        return stop.check();
    }
    stop.check()?;
    Err(anyhow!("rows are missing at the end"))
}

/// Runs what blocks on a thread of its own. Its error is the run's.
fn thread(
    name: &str,
    stop: &Stop,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<tokio::task::JoinHandle<()>> {
    let (stop, named) = (stop.clone(), name.to_owned());
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name(named.clone()).spawn(move || {
        if let Err(cause) = work() {
            stop.because(cause);
        }
        let _ = ended.send(());
    })?;
    let panicked = anyhow!("the {named} broke off");
    Ok(tokio::spawn(async move { end.await.map_err(|_| panicked).expect("a thread ends") }))
}

/// What the thread that reads opens.
struct Input {
    address: Address,
    reading: Reading,
    clean: Declared,
    tokens: Option<Box<dyn Tokens>>,
    id: Option<String>,
    seen: PathBuf,
}

impl Input {
    fn open(
        self,
        resumed: &Resumed,
        ahead: Arc<Semaphore>,
        rows: mpsc::Sender<Vec<Work>>,
        progress: Arc<Progress>,
        runtime: Handle,
    ) -> Result<Reader> {
        let opened = source::open(&self.address, &resumed.position, &self.reading);
        let source = opened.with_context(|| format!("{}", self.address))?;
        let seen = |end| {
            let mut seen = Seen::open(&beside(&self.seen, end), runtime.clone())?;
            if self.address.may_change() {
                seen.forget_from(resumed.position.rows)?;
            }
            Ok::<_, Error>(seen)
        };
        let texts = if self.clean.compares() { Some(seen("")?) } else { None };
        let ids = match self.id {
            Some(column) => Some((column, seen("-ids")?)),
            None => None,
        };
        let cleaner = match self.clean.is_nothing() {
            true => None,
            false => Some(Cleaner::new(&self.clean, self.tokens, texts)?),
        };
        Ok(Reader {
            source,
            cleaner,
            ids,
            done: resumed.done.iter().copied().collect(),
            next: resumed.position.rows,
            // More than may be ahead would never be let through.
            together: reading::ROWS_TOGETHER.min(ahead.available_permits()),
            ahead,
            rows,
            progress,
            runtime,
        })
    }
}

/// A row that is done with; without a record where it was before.
struct Done {
    row: u64,
    after: Position,
    record: Option<DoneRow>,
}

/// Asks for rows as they come, so many at once.
async fn dispatch(
    mut rows: mpsc::Receiver<Vec<Work>>,
    asking: Arc<Asking>,
    concurrency: usize,
    done: mpsc::Sender<Done>,
    stop: Stop,
) {
    let slots = Arc::new(Semaphore::new(concurrency));
    let work = async {
        while let Some(together) = rows.recv().await {
            for Work { row, line, after, what } in together {
                let record = match what {
                    What::Already => None,
                    What::Done(state, text) => Some(DoneRow { row, state, text }),
                    What::Ask(cells) => {
                        let slot = slots.clone().acquire_owned().await;
                        let slot = slot.expect("it is never closed");
                        let (asking, done, stop) = (asking.clone(), done.clone(), stop.clone());
                        tokio::spawn(async move {
                            let asked = tokio::select! {
                                asked = asking.ask(row, line, cells) => asked,
                                () = stop.token.cancelled() => return,
                            };
                            match asked {
                                Ok(record) => {
                                    let record = Some(record);
                                    let _ = done.send(Done { row, after, record }).await;
                                }
                                Err(why) => stop.because(anyhow!(why)),
                            }
                            drop(slot);
                        });
                        continue;
                    }
                };
                if done.send(Done { row, after, record }).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.token.cancelled() => {}
    }
}

/// Until where all rows are done with.
struct Prefix {
    position: Position,
    /// Rows behind it that are, too.
    waiting: BTreeMap<u64, Position>,
}

impl Prefix {
    fn add(&mut self, row: u64, after: Position) {
        self.waiting.insert(row, after);
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() != self.position.rows {
                break;
            }
            self.position = entry.remove();
        }
    }
}
