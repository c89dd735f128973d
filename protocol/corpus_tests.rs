//! Golden bytes: everything that processes say to each other, as this version says it and as the
//! one before does.
//!
//! A version's file was written by that version, and never again once it is released. What is said
//! changes by sections of frames that are not critical, and by fields at the end of a message
//! ([`codec::added`](crate::codec)).

use std::collections::BTreeMap;

use ractor::Message;
use ractor::message::SerializedMessage;

use crate::config::{KvCacheDtype, Quantize};
use crate::message::{
    CoordinatorMsg, Drain, FetchProgress, Leaving, LoadProgress, Loading, Measure, NodeMsg,
    Sources, StageFailed, Unload, Ways,
};
use crate::*;

const VERSION_4: &str = include_str!("../tests/corpora/wire-4.txt");
const VERSION_5: &str = include_str!("../tests/corpora/wire-5.txt");

/// Names, each with its bytes.
type Corpus = BTreeMap<String, Vec<u8>>;

/// What is said; messages, which can't be compared, in Debug's words.
#[derive(Debug, PartialEq)]
enum Said {
    Frame(Box<Frame>),
    Message(String),
}

impl Said {
    fn message(message: &dyn std::fmt::Debug) -> Self {
        Self::Message(format!("{message:?}"))
    }

    fn of(name: &str, bytes: &[u8]) -> Self {
        let (kind, variant) = name.split_once("::").unwrap_or((name, ""));
        let (args, variant) = (bytes.to_vec(), variant.to_owned());
        let cast = SerializedMessage::Cast { variant, args, metadata: None };
        match kind {
            "Frame" => Self::Frame(Frame::decode(&bytes.to_vec().into()).unwrap().into()),
            "NodeMsg" => Self::message(&NodeMsg::deserialize(cast).unwrap()),
            "CoordinatorMsg" => Self::message(&CoordinatorMsg::deserialize(cast).unwrap()),
            "NodeReport" => Self::message(&codec::decode::<NodeReport>(bytes).unwrap()),
            _ => panic!("{name} is nothing that is said"),
        }
    }
}

fn read(file: &str) -> Corpus {
    let line = |line: &str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (name.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
    };
    file.lines().map(line).collect()
}

fn written(corpus: &Corpus) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    corpus.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect()
}

fn stage() -> StageId {
    StageId { pipeline: PipelineId(3), epoch: Epoch { start: 9, counter: 4 }, stage: StageIndex(1) }
}

fn frame(body: Body) -> Frame {
    Frame { model: ModelId([7; 16]), stage: stage(), step: StepId(1 << 40), body }
}

fn begin() -> Begin {
    Begin {
        sampling: SamplingParams {
            temperature: 0.5,
            top_k: 40,
            top_p: 0.75,
            min_p: 0.125,
            repetition_penalty: 1.5,
            frequency_penalty: 0.25,
            presence_penalty: -0.5,
            logit_bias: vec![(TokenId(70_000), -100.0)],
            seed: u64::MAX,
            choice: 2,
            num_logprobs: Some(5),
            num_prompt_logprobs: None,
        },
        num_prompt_tokens: 300,
        skipped: vec![TokenId(0), TokenId(9)],
        copy_from: Some(BlockId(3)),
    }
}

fn step() -> Step {
    let prefill = Slice {
        sequence: SequenceId(5),
        start: 2,
        input: Input::Tokens(vec![TokenId(1), TokenId(151_329)]),
        first_block: 0,
        blocks: vec![BlockId(8), BlockId(1000)],
        begin: Some(Box::new(begin())),
        sample: false,
        next: Some(TokenId(77)),
    };
    let decode = Slice {
        sequence: SequenceId(6),
        start: 400,
        input: Input::SampledBy(StepId((1 << 40) - 1)),
        first_block: 25,
        blocks: vec![],
        begin: None,
        sample: true,
        next: None,
    };
    let batch = Batch { finished: vec![SequenceId(4)], slices: vec![prefill, decode] };
    Step {
        batch: batch.into(),
        hidden: [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX].into_iter().collect(),
        side: None,
        masks: Masks::default(),
        awaits_masks: false,
        tells_hidden: vec![],
        timings: vec![timing()],
        traces: vec![TraceContext { trace: TraceId([3; 16]), span: SpanId(8), sampled: true }],
    }
}

fn timing() -> StageTiming {
    StageTiming {
        stage: StageIndex(1),
        decode_us: 1,
        wait_us: 2,
        handoff_us: 3,
        upload_us: 400,
        compute_us: 70_000,
        readback_us: 6,
        encode_us: 7,
        send_us: 8,
        rtt_us: 9,
        received_bytes: 1 << 20,
    }
}

fn sampled() -> Sampled {
    let top = TokenLogprob { token: TokenId(3), logprob: -0.25 };
    let logprobs = Logprobs { chosen: top, top: vec![top] };
    let output = SliceOutput {
        sequence: SequenceId(5),
        position: 4,
        token: Some(TokenId(3)),
        logprobs: Some(logprobs.clone()),
        prompt_logprobs: vec![logprobs],
    };
    Sampled { outputs: vec![output], timings: vec![timing()], ..Sampled::default() }
}

fn plan() -> StagePlan {
    StagePlan {
        id: stage(),
        num_stages: 2,
        layers: LayerRange { first: 20, end: 46 },
        adapter: 1,
        model: ModelId([7; 16]),
        model_path: "models/glm".into(),
        digests: vec![Digest([1; 32]), Digest([2; 32])],
        quantize: Quantize::default(),
        kv_cache_dtype: KvCacheDtype::default(),
        next: Some(Peer { node: NodeId(11), addr: "127.0.0.1:7000".parse().unwrap() }),
        limits: StageLimits {
            max_batched_tokens: 2048,
            max_num_seqs: 64,
            max_model_len: 1 << 17,
            max_blocks: 10_000,
            max_logprobs: 20,
        },
        memory_bytes: 80 << 30,
    }
}

fn echo() -> StageEcho {
    StageEcho {
        node: NodeId(11),
        id: stage(),
        model: ModelId([7; 16]),
        layers: LayerRange { first: 20, end: 46 },
        hidden_size: 4096,
        num_blocks: 9000,
        memory_bytes: 79 << 30,
        fingerprint: Digest([4; 32]),
    }
}

fn report() -> NodeReport {
    NodeReport {
        node: NodeId(11),
        session: SessionId(12),
        hostname: "gpu-1".into(),
        pid: 4711,
        data_addr: "[::1]:7001".parse().unwrap(),
        pool: "gpu-a".into(),
        labels: vec![("zone".into(), "a".into())],
        adapters: vec![AdapterReport {
            name: "llvmpipe".into(),
            driver: "lavapipe 1".into(),
            memory_bytes: 8 << 30,
            max_cache_bytes: None,
            fingerprint: Digest([5; 32]),
            speed: Speed { weight_bytes_per_s: 3e12, kernel_us: 2.5, ..Speed::default() },
        }],
        held: vec![HeldParts {
            adapter: 0,
            model: ModelId([7; 16]),
            quantize: Quantize::Int8,
            embedding: false,
            layers: vec![LayerRange { first: 20, end: 46 }],
            head: true,
        }],
    }
}

fn loading() -> Loading {
    Loading {
        checked_bytes: 1 << 33,
        loaded_bytes: 2 << 33,
        total_bytes: 3 << 33,
        num_compiled: 4,
        num_kernels: 5,
        ..Loading::default()
    }
}

/// Everything that is said where both sides speak this version, and its bytes now.
fn all(version: u16) -> BTreeMap<String, (Vec<u8>, Said)> {
    let blame = Blame::Next;
    let (node, session, id, cause) = (NodeId(11), SessionId(12), stage(), "no memory".into());
    let unload = Unload { pipeline: id.pipeline, epoch: id.epoch };
    let leaving = Leaving { node, session, cause: "told to end".into() };
    let mut report = report();
    if version < 5 {
        report.held.clear();
    }
    let peer = Peer { node, addr: ([10, 0, 0, 7], 7001).into() };
    let sources = Sources { model: ModelId([7; 16]), config: Digest([9; 32]), nodes: vec![peer] };
    let measure = Measure { nodes: vec![peer], num_bytes: 1 << 21, timeout_ms: 2000 };
    let way = LinkSpeed { rtt_us: 250.0, bytes_per_s: 1e9 };
    let ways = Ways { node, session, ways: vec![(NodeId(13), way)] };
    let (is_warming, num_bytes, of_bytes, num_sources) = (true, 1 << 20, 1 << 33, 3);
    let fetching = FetchProgress { node, session, is_warming, num_bytes, of_bytes, num_sources };
    let to_node = [
        NodeMsg::Sources(sources.into()),
        NodeMsg::Measure(measure.into()),
        NodeMsg::Load(plan().into()),
        NodeMsg::Unload(unload.into()),
        NodeMsg::Warm(plan().into()),
        NodeMsg::Release(().into()),
        NodeMsg::Revoked(vec![NodeId(11), NodeId(u64::MAX)].into()),
    ];
    let to_coordinator = [
        CoordinatorMsg::Ready(echo().into()),
        CoordinatorMsg::Failed(StageFailed { node, id, cause, blame }.into()),
        CoordinatorMsg::Progress(LoadProgress { id, loading: loading() }.into()),
        CoordinatorMsg::Leaving(leaving.into()),
        CoordinatorMsg::Fetching(fetching.into()),
        CoordinatorMsg::Ways(ways.into()),
        CoordinatorMsg::Drain(Drain { node, session }.into()),
    ];
    let mut all = BTreeMap::new();
    let failed = Failed { cause: "device lost".into(), fatal: true, blame };
    let masked = Step { masks: Masks::with(&[(1, &[5, 1 << 31])]), ..step() };
    let mut frames = vec![
        ("Frame::Step", Body::Step(step())),
        ("Frame::Sampled", Body::Sampled(sampled())),
        ("Frame::Failed", Body::Failed(failed)),
    ];
    if version >= 5 {
        let side = Some(Side { name: "chosen".into(), words: vec![7, u32::MAX] });
        let awaiting = Step { side, awaits_masks: true, tells_hidden: vec![0, 300], ..step() };
        let row = HiddenRow { slice: 300, values: vec![0.5, -0.0] };
        let told = Sampled { hidden: vec![HiddenRow::default(), row], ..sampled() };
        frames.push(("Frame::Step+Masks", Body::Step(masked)));
        frames.push(("Frame::Step+Awaits", Body::Step(awaiting)));
        frames.push(("Frame::Sampled+Hidden", Body::Sampled(told)));
        let masks = Masks::with(&[(0, &[0, u32::MAX]), (300, &[1, 2])]);
        frames.push(("Frame::Masks", Body::Masks(masks)));
    }
    for (name, body) in frames {
        let frame = frame(body);
        all.insert(name.into(), (frame.encode().concat(), Said::Frame(frame.into())));
    }
    all.insert("NodeReport".into(), (codec::encode(&report), Said::message(&report)));
    let mut cast = |name: &str, said, message| {
        let SerializedMessage::Cast { variant, args, .. } = message else { panic!() };
        assert!(name.ends_with(&format!("::{variant}")), "{name} is said as {variant}");
        all.insert(name.to_owned(), (args, said));
    };
    for message in to_node.into_iter().filter(|it| it.since() <= version) {
        cast(name_to_node(&message), Said::message(&message), message.serialize().unwrap());
    }
    for message in to_coordinator.into_iter().filter(|it| it.since() <= version) {
        cast(name_to_coordinator(&message), Said::message(&message), message.serialize().unwrap());
    }
    all
}

/// The names of messages. Whoever adds one is told here to keep its bytes.
fn name_to_node(message: &NodeMsg) -> &'static str {
    match message {
        NodeMsg::Load(_) => "NodeMsg::Load",
        NodeMsg::Warm(_) => "NodeMsg::Warm",
        NodeMsg::Sources(_) => "NodeMsg::Sources",
        NodeMsg::Measure(_) => "NodeMsg::Measure",
        NodeMsg::Unload(_) => "NodeMsg::Unload",
        NodeMsg::Release(_) => "NodeMsg::Release",
        NodeMsg::Revoked(_) => "NodeMsg::Revoked",
        // A question without content; its answer is kept.
        NodeMsg::Report(..) => "NodeReport",
    }
}

fn name_to_coordinator(message: &CoordinatorMsg) -> &'static str {
    match message {
        CoordinatorMsg::Ready(_) => "CoordinatorMsg::Ready",
        CoordinatorMsg::Failed(_) => "CoordinatorMsg::Failed",
        CoordinatorMsg::Progress(_) => "CoordinatorMsg::Progress",
        CoordinatorMsg::Fetching(_) => "CoordinatorMsg::Fetching",
        CoordinatorMsg::Ways(_) => "CoordinatorMsg::Ways",
        CoordinatorMsg::Drain(_) => "CoordinatorMsg::Drain",
        CoordinatorMsg::Leaving(_) => "CoordinatorMsg::Leaving",
    }
}

fn is_read(file: &str, version: u16) {
    let corpus = read(file);
    let all = all(version);
    assert!(corpus.keys().eq(all.keys()), "version {version} says {:?}", all.keys());
    for (name, (_, said)) in all {
        assert_eq!(Said::of(&name, &corpus[&name]), said, "{name}");
    }
}

/// What is said where both sides speak this version stays, byte for byte, what it was.
fn stays(file: &str, version: u16) {
    let now: Corpus = all(version).into_iter().map(|(name, (bytes, _))| (name, bytes)).collect();
    assert_eq!(
        written(&now),
        file,
        "what version {version} says has changed: once it is released, make WIRE_VERSION one more, \
         keep this file and the way to read it, and begin a file of the new version:\n{}",
        written(&now)
    );
    is_read(file, version);
}

#[test]
fn what_this_version_says_stays_as_it_is() {
    stays(VERSION_5, WIRE_VERSION);
}

/// Whoever speaks the version before is told what it reads, and read: its own bytes are what this
/// process would say in its place.
#[test]
fn the_version_before_is_spoken_as_it_was() {
    stays(VERSION_4, OLDEST_WIRE_VERSION);
}

/// Goal: what was added to a report is heard, and to whoever knows less nothing of it is said.
#[test]
fn what_was_added_to_a_report_is_told_with_and_without_what_is_held() {
    for held in [Vec::new(), report().held] {
        let mut said = NodeReport { held, ..report() };
        let before = codec::encode(&said);
        said.adapters[0].max_cache_bytes = Some(1 << 30);
        let bytes = codec::encode(&said);
        assert!(bytes.starts_with(&before) && bytes.len() > before.len());
        assert_eq!(codec::decode::<NodeReport>(&bytes).unwrap(), said);
        for max_cache_bytes in [None, Some(1 << 30)] {
            said.adapters[0].max_cache_bytes = max_cache_bytes;
            said.adapters[0].speed.narrow = Narrow { int8_ps: 162.0, int4_ps: 0.0 };
            let bytes = codec::encode(&said);
            assert!(bytes.starts_with(&before) && bytes.len() > before.len());
            assert_eq!(codec::decode::<NodeReport>(&bytes).unwrap(), said);
        }
    }
}
