//! A model's pieces on disk, and what may happen to them there.

use protocol::FileManifest;

use super::*;

const PIECE: usize = 4096;

fn bytes(seed: u8) -> Vec<u8> {
    (0..4 * PIECE + 100).map(|at| (at / 13) as u8 ^ seed).collect()
}

fn manifest(bytes: &[u8]) -> Manifest {
    let pieces = bytes.chunks(PIECE).map(|it| Digest(*blake3::hash(it).as_bytes())).collect();
    let (name, num_bytes) = ("a.safetensors".into(), bytes.len() as u64);
    let files = vec![FileManifest { name, num_bytes, header_bytes: 8, pieces }];
    Manifest { entry: String::new(), piece_bytes: PIECE as u32, files, parts: Vec::new() }
}

fn piece(index: u32) -> PieceId {
    PieceId { file: 0, index }
}

fn pieces() -> BTreeSet<PieceId> {
    (0..5).map(piece).collect()
}

fn keep(model: &CachedModel, bytes: &[u8], indices: &[u32]) {
    for &index in indices {
        let of_it = bytes.chunks(PIECE).nth(index as usize).unwrap();
        assert!(model.keep(piece(index), of_it).unwrap());
    }
    model.flush().unwrap();
}

fn held(model: &CachedModel) -> Vec<u32> {
    (0..5).filter(|index| model.holds(piece(*index))).collect()
}

/// Goal: whatever became of a file while nobody looked, a piece that isn't what it should be is
/// noticed, and can be had anew.
#[test]
fn a_piece_that_was_damaged_on_disk_is_not_there_any_more() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), bytes(0));
    let manifest = manifest(&bytes);
    let open =
        || Cache::open(dir.path(), 1 << 20).unwrap().model(&manifest, &pieces(), None).unwrap();
    let model = open();
    keep(&model, &bytes, &[0, 1, 2, 4]);
    assert_eq!(held(&model), [0, 1, 2, 4]);
    let path = model.path().join("a.safetensors");
    drop(model);
    assert_eq!(held(&open()), [0, 1, 2, 4], "what is whole is still there");
    type Damage<'a> = (&'a dyn Fn(&File), &'a [u32]);
    let damages: [Damage<'_>; 3] = [
        (&|file| file.write_all_at(b"?", PIECE as u64 + 7).unwrap(), &[0, 2, 4]),
        // Whoever opens it makes it as long as it should be, with a hole.
        (&|file| file.set_len(2 * PIECE as u64).unwrap(), &[0, 1]),
        (&|file| file.set_len(0).unwrap(), &[]),
    ];
    for (damage, left) in damages {
        damage(&OpenOptions::new().write(true).open(&path).unwrap());
        let model = open();
        assert_eq!(held(&model), left);
        keep(&model, &bytes, &[0, 1, 2, 4]);
        drop(model);
        assert_eq!(held(&open()), [0, 1, 2, 4]);
    }
    // Other bytes are never kept.
    assert!(!open().keep(piece(3), &bytes[..PIECE]).unwrap());
}

#[test]
fn a_hole_is_never_covered() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), bytes(0));
    let cache = Cache::open(dir.path(), 1 << 20).unwrap();
    let model = cache.model(&manifest(&bytes), &pieces(), None).unwrap();
    keep(&model, &bytes, &[0, 1, 3, 4]);
    let covers = |range| model.covers(OsStr::new("a.safetensors"), range);
    let (two, three) = (2 * PIECE as u64, 3 * PIECE as u64);
    assert!(covers(0..two) && covers(two - 1..two) && covers(three..three + 200));
    assert!(!covers(0..two + 1) && !covers(two..two + 1) && !covers(three - 1..three + 1));
    assert!(!model.covers(OsStr::new("b.safetensors"), 0..1));
    assert!(model.held().contains(piece(3)) && !model.held().contains(piece(2)));
}

/// Goal: models give way to others, those unused for longest first, but none that is in use.
#[test]
fn a_model_in_use_makes_no_room_for_another() {
    let dir = tempfile::tempdir().unwrap();
    // A model of two pieces takes some blocks more, for what is recorded of it.
    let cache = Cache::open(dir.path(), 40 << 10).unwrap();
    let open = |seed: u8| {
        let bytes = bytes(seed);
        let needed = BTreeSet::from([piece(0), piece(1)]);
        let model = cache.model(&manifest(&bytes), &needed, None)?;
        keep(&model, &bytes, &[0, 1]);
        // Whose turn it is goes by the clock of the disk.
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok::<_, String>(model)
    };
    let is_there = |dir: &Path| dir.exists();
    let (one, two) = (open(1).unwrap(), open(2).unwrap());
    let (first, second) = (one.path(), two.path());
    drop(two);
    let three = open(3).unwrap();
    assert!(is_there(&first), "it is in use, however long ago it was opened");
    let four = open(4).unwrap();
    assert!(is_there(&first) && is_there(&three.path()) && !is_there(&second));
    let said = open(5).unwrap_err();
    assert!(said.contains("of models in use") && said.contains("raise it"), "{said}");
    drop((one, three));
    let _five = open(5).unwrap();
    assert!(!is_there(&first) && is_there(&four.path()));
}

/// Goal: a cache of a limited size goes on whichever layers of its model move, and what it gave
/// back is fetched anew when it is needed again.
#[cfg(target_os = "linux")]
#[test]
fn pieces_that_are_not_needed_give_way_to_others_of_the_same_model() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), bytes(0));
    let manifest = manifest(&bytes);
    let set = |indices: &[u32]| indices.iter().copied().map(piece).collect::<BTreeSet<_>>();
    let max = 5 * PIECE as u64;
    let cache = Cache::open(dir.path(), max).unwrap();
    let open = |indices: &[u32], last| cache.model(&manifest, &set(indices), last);
    let mut last = open(&[0, 1], None).unwrap();
    keep(&last, &bytes, &[0, 1]);
    for indices in [[0, 2], [1, 2], [3, 4], [0, 1]] {
        last = open(&indices, Some(last)).unwrap();
        keep(&last, &bytes, &indices);
        last = open(&indices, Some(last)).unwrap();
        assert!(used(&last.dir) <= max, "{indices:?}: {}", used(&last.dir));
        assert!(last.missing(&set(&indices)).is_empty());
    }
    assert!(used(&last.dir) > 2 * PIECE as u64, "what fits stays");
    // Whoever loads from it needs what it has.
    let reads = Arc::clone(&last);
    let said = open(&[2, 3, 4], Some(last)).unwrap_err();
    assert!(said.contains("--cache-size"), "{said}");
    drop(reads);
    let last = open(&[2, 3, 4], None).unwrap();
    assert_eq!(held(&last).iter().filter(|it| **it < 2).count(), 0);
    keep(&last, &bytes, &[2, 3, 4]);
    drop(last);
    // What a process finds that starts is what is recorded.
    drop(cache);
    let cache = Cache::open(dir.path(), max).unwrap();
    let model = cache.model(&manifest, &set(&[2, 3]), None).unwrap();
    assert_eq!(held(&model), [2, 3, 4]);
}

/// Goal: the model that was loaded last doesn't keep the next one out.
#[test]
fn the_last_model_makes_room_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 24 << 10).unwrap();
    let mut last = None;
    for seed in 1..4 {
        let bytes = bytes(seed);
        let model = cache.model(&manifest(&bytes), &pieces(), last.take()).unwrap();
        keep(&model, &bytes, &[0, 1, 2]);
        last = Some(model);
    }
    assert_eq!(cache.models().unwrap().len(), 1);
}

#[test]
fn what_the_disk_says_names_the_place_and_what_would_be_right() {
    let full = io::Error::from(io::ErrorKind::StorageFull);
    let said = trouble(Path::new("/var/cache"), &full);
    assert!(said.contains("/var/cache is full") && said.contains("--cache-dir"), "{said}");
}
