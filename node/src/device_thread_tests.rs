use std::collections::HashSet;

use shaders::gpu::GpuOptions;
use shaders::matmul::Products;

use super::*;

/// One layer of a small model, which neither embeds nor samples.
fn plan() -> StagePlan {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
    let files = Checkpoint::open(std::path::Path::new(path)).unwrap();
    let plan = crate::kept::tests::plan(&files, 1..2);
    StagePlan { model_path: path.into(), memory_bytes: 1 << 30, ..plan }
}

/// Goal: what an adapter holds is kept for a coordinator that is away, and only for that long.
/// Method: virtual time, in which a stage is dropped and its coordinator goes and comes back.
#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_while_there_is_no_coordinator() {
    let (device, mut thread) = DeviceThread::fake();
    let mut told = async |within: Duration| {
        let job = tokio::time::timeout(within, thread.queue.recv()).await;
        job.ok().map(|job| matches!(job, Some(Job::Tidy(_))))
    };
    device.unload(StageId::default()).await;
    assert_eq!(told(MAX_IDLE).await, Some(false), "the stage is dropped");
    device.coordinated(false);
    assert_eq!(told(100 * MAX_IDLE).await, None);
    device.coordinated(true);
    assert_eq!(told(MAX_IDLE / 2).await, None, "it is given time to ask for it");
    assert_eq!(told(MAX_IDLE).await, Some(true));
}

/// A driver that hangs: no time at all is given to it.
#[tokio::test]
async fn an_adapter_that_does_not_answer_is_given_up_and_its_thread_ends() {
    let options = GpuOptions { max_wait: Duration::ZERO, ..GpuOptions::default() };
    let gpu = match Gpu::open_with(None, options) {
        Ok(gpu) => gpu,
        Err(cause) => return println!("skipped: no adapter ({cause})"),
    };
    let kernels = Kernels::new(&gpu).unwrap();
    let worker = Worker::new(gpu, kernels, 1 << 30);
    let (jobs, queue) = mpsc::channel(16);
    let fault = Arc::new(OnceLock::new());
    let told = Arc::clone(&fault);
    let thread = std::thread::spawn(move || worker.run(queue, (&told, &Mutex::default())));
    let (other, _) = DeviceThread::fake();
    let thread = Arc::new(Mutex::new(Some(thread)));
    let device = DeviceThread { jobs, thread, fault, ..other };
    let loaded = device.load(plan(), Box::new(|_| ())).await.unwrap_err();
    assert!(loaded.loses_adapter(), "{loaded}");
    assert!(device.lost().await.contains("did not finish within 0 s"));
    let gone = device.load(plan(), Box::new(|_| ())).await.unwrap_err();
    assert!(matches!(gone, StageError::DeviceGone), "{gone}");
    device.stop().await;
}

/// Goal: a load that was given up, as when a node is to end or is placed anew, holds up nothing
/// behind it. Method: two layers, of which nobody waits any more for the second.
#[tokio::test]
async fn a_load_that_nobody_waits_for_ends_with_the_part_that_it_is_at() {
    let gpu = match Gpu::open_with(None, GpuOptions::default()) {
        Ok(gpu) => gpu,
        Err(cause) => return println!("skipped: no adapter ({cause})"),
    };
    let kernels = Kernels::new(&gpu).unwrap();
    let worker = Worker::new(gpu, kernels, 1 << 30);
    let (jobs, queue) = mpsc::channel(16);
    let held = Arc::<Mutex<Vec<HeldParts>>>::default();
    let shown = Arc::clone(&held);
    let thread = std::thread::spawn(move || worker.run(queue, (&OnceLock::new(), &shown)));
    let (other, _) = DeviceThread::fake();
    let thread = Arc::new(Mutex::new(Some(thread)));
    let device = DeviceThread { jobs, thread, held, ..other };
    let files = Checkpoint::open(std::path::Path::new(&plan().model_path)).unwrap();
    let layers = crate::kept::tests::plan(&files, 1..3);
    let plan = StagePlan { model_path: plan().model_path, memory_bytes: 1 << 30, ..layers };
    let (tell, mut told) = mpsc::unbounded_channel();
    let (go, going) = std::sync::mpsc::channel::<()>();
    let progress = Box::new(move |_: Loading| {
        let _ = tell.send(());
        let _ = going.recv();
    });
    tokio::select! {
        loaded = device.load(plan, progress) => panic!("{loaded:?}"),
        _ = told.recv() => {}
    }
    drop(go);
    device.stop().await;
    let layers = vec![protocol::LayerRange { first: 1, end: 2 }];
    assert_eq!(device.held(), [HeldParts { layers, ..HeldParts::default() }]);
}

/// Goal: a model that took another's place at its path is loaded as what it is. Method: the second
/// differs in one byte of a layer.
#[test]
fn files_that_took_the_place_of_others_are_read() {
    let gpu = match Gpu::open_with(None, GpuOptions::default()) {
        Ok(gpu) => gpu,
        Err(cause) => return println!("skipped: no adapter ({cause})"),
    };
    let kernels = Kernels::new(&gpu).unwrap();
    let mut worker = Worker::new(gpu, kernels, 1 << 30);
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(plan().model_path).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let mut load = || {
        let files = Checkpoint::open(dir.path()).unwrap();
        let plan = crate::kept::tests::plan(&files, 1..2);
        let model_path = dir.path().to_string_lossy().into_owned();
        let plan = StagePlan { model_path, memory_bytes: 1 << 30, ..plan };
        worker.load_stage(&plan, &mut |_| true).unwrap();
        let ranges = files.ranges(checkpoint::Part::Layer(1)).unwrap();
        (plan.digests, files.files().unwrap()[ranges[0].0].path.clone(), ranges[0].1.clone())
    };
    let (digests, path, range) = load();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[range.start as usize] ^= 1;
    let other = dir.path().join("other");
    std::fs::write(&other, bytes).unwrap();
    std::fs::rename(other, path).unwrap();
    assert_ne!(load().0, digests);
}

#[test]
fn every_way_to_compute_products_has_a_report_of_its_own() {
    let class = |products| {
        let opened = Worker::open(None, Wanted::Only(products), |_| Ok(0));
        opened.map(|(_, report)| report.fingerprint)
    };
    let plain = match class(Products::Plain) {
        Ok(plain) => plain,
        Err(cause) => return println!("skipped: no adapter ({cause})"),
    };
    assert_eq!(class(Products::Plain).unwrap(), plain);
    let mut found = vec![plain, class(Products::PackedDot).unwrap()];
    match class(Products::Cooperative) {
        Ok(class) => found.push(class),
        Err(cause) => {
            assert!(cause.to_string().contains("it lacks"), "{cause}");
            println!("skipped: products by cooperative matrices ({cause})");
        }
    }
    let distinct: HashSet<_> = found.iter().collect();
    assert_eq!(distinct.len(), found.len());
}
