"""llama.cpp beside autoglm-bench model: same machine, weights and work.

  python bench/peers/compare.py run MODEL.gguf ...     one round of llama.cpp, as JSON
  python bench/peers/compare.py compare ...            interleaved rounds of both, with ratios

llama.cpp comes as the PyPI package llama-cpp-python; `make bench-peers` installs it, with
its Vulkan backend where that is asked for. Where that isn't there, but the package cyllama
is, it comes as that has it: built before, for processors with AVX2, which is slower than what
is built for a newer one.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKENDS = ["cpu", "vulkan"]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def compiled_here(arguments):
    """llama-cpp-python: what decodes (sequence, position, is an output), and what forgets."""
    # Named, a software device counts, too.
    os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    on_gpu = arguments.backend == "vulkan"
    if on_gpu and not llama.llama_supports_gpu_offload():
        sys.exit("this llama.cpp was built without its Vulkan backend, or finds no Vulkan device")
    model_params.n_gpu_layers = 1000 if on_gpu else 0
    if not on_gpu:
        # Or it gives large products to a GPU all the same.
        no_devices = (ctypes.c_void_p * 1)(None)
        model_params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    model = llama.llama_model_load_from_file(arguments.model.encode(), model_params)
    if not model:
        sys.exit(f"llama.cpp can't load {arguments.model}")
    params = llama.llama_context_default_params()
    params.n_batch = params.n_ubatch = max(arguments.prompt, arguments.batch)
    params.n_ctx = max(arguments.prompt, arguments.tokens) + arguments.batch * 64 + 256
    params.n_seq_max = arguments.batch
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = arguments.threads
    params.offload_kqv = params.op_offload = on_gpu
    context = llama.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp can't make a context")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(params.n_batch, 0, 1)

    def decode(tokens):
        batch.n_tokens = len(tokens)
        for i, (sequence, position, output) in enumerate(tokens):
            batch.token[i] = token(sequence, position)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = output
        if llama.llama_decode(context, batch):
            sys.exit("llama.cpp can't decode")
        llama.llama_synchronize(context)

    return decode, lambda: llama.llama_memory_clear(memory, True)


def compiled_before(arguments):
    """The same of cyllama."""
    from cyllama.llama import llama_cpp as llama

    if arguments.backend != "cpu":
        sys.exit("cyllama has llama.cpp's processor backend alone")
    model_params = llama.LlamaModelParams()
    model_params.n_gpu_layers = 0
    model = llama.LlamaModel(path_model=arguments.model, params=model_params, verbose=False)
    most = max(arguments.prompt, arguments.batch)
    params = llama.LlamaContextParams()
    params.n_batch = params.n_ubatch = most
    params.n_ctx = max(arguments.prompt, arguments.tokens) + arguments.batch * 64 + 256
    params.n_seq_max = arguments.batch
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = arguments.threads
    params.offload_kqv = params.op_offload = False
    context = llama.LlamaContext(model, params, verbose=False)

    def decode(tokens):
        batch = llama.LlamaBatch(n_tokens=most, embd=0, n_seq_max=1)
        for sequence, position, output in tokens:
            batch.add(token(sequence, position), position, [sequence], bool(output))
        context.decode(batch)
        context.synchronize()

    return decode, lambda: context.kv_cache_clear(True)


def token(sequence, position):
    return (position * 7919 + sequence * 31 + 1) % 30000


def run(arguments):
    """pp, tg and batched tg, as llama-bench and llama-batched-bench time them."""
    has_own = importlib.util.find_spec("llama_cpp") is not None
    decode, forget = (compiled_here if has_own else compiled_before)(arguments)

    def prompt(n):
        decode([(0, i, i + 1 == n) for i in range(n)])

    def answer(sequences, n):
        for position in range(n):
            decode([(sequence, position, 1) for sequence in range(sequences)])

    tests = []
    for name, work, num_tokens in [
        (f"pp{arguments.prompt}", lambda: prompt(arguments.prompt), arguments.prompt),
        (f"tg{arguments.tokens}", lambda: answer(1, arguments.tokens), arguments.tokens),
        (
            f"tg32 x{arguments.batch}",
            lambda: answer(arguments.batch, 32),
            arguments.batch * 32,
        ),
    ]:
        forget()
        answer(1, 2)
        forget()
        start, cpu = time.perf_counter(), cpu_seconds()
        work()
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        tests.append(
            {"test": name, "median_ts": num_tokens / wall, "median_ts_per_cpu": num_tokens / cpu}
        )
    print(json.dumps({"tests": tests}))


def written(arguments, shape, storage, folder):
    """A file of random weights."""
    model = folder / f"{shape}-{storage}.gguf"
    command = [arguments.bench, "random-model", shape, model, "--storage", storage]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return model


def compare(arguments):
    here = Path(__file__)
    storages = arguments.storages.split(",")
    results, notes = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for storage in storages:
            model = written(arguments, arguments.shape, storage, Path(scratch))
            sizes = ["--prompt", str(arguments.prompt), "--tokens", str(arguments.tokens)]
            report = Path(scratch) / "ours.json"
            ours = [arguments.bench, "model", model, *sizes, "--rounds", "1", "--contexts", "0"]
            ours += ["--batches", str(arguments.batch), "--json", report]
            work = [model, *sizes, "--batch", str(arguments.batch)]
            work += ["--threads", str(arguments.threads)]
            engines = {
                backend: [sys.executable, here, "run", "--backend", backend, *work]
                for backend in arguments.backends
            }
            engines["ours"] = ours
            if arguments.dense:
                dense = written(arguments, arguments.dense, storage, Path(scratch))
                engines["dense"] = [dense if part is model else part for part in ours]
            rounds = {engine: [] for engine in engines}
            for number in range(arguments.rounds):
                for engine, command in engines.items():
                    print(f"{storage}: round {number + 1}: {engine}", file=sys.stderr)
                    done = subprocess.run([str(part) for part in command], capture_output=True)
                    if done.returncode:
                        sys.exit(f"{engine}: {done.stderr.decode()[-2000:]}")
                    is_ours = engine in ("ours", "dense")
                    text = report.read_text() if is_ours else done.stdout.splitlines()[-1]
                    about = json.loads(text)
                    tests = about["tests"]
                    if engine == "ours" and not number:
                        times = about["weights_bytes"] / about["file_bytes"]
                        notes.append(f"{storage}: weights take {times:.3f} times their file")
                    rounds[engine].append({test["test"]: test for test in tests})
            ours = rounds.pop("ours")
            if arguments.dense:
                test = f"tg{arguments.tokens}"
                times = [
                    of_dense[test]["median_ts_per_cpu"] / one[test]["median_ts_per_cpu"]
                    for one, of_dense in zip(ours, rounds.pop("dense"))
                ]
                times = statistics.median(times)
                notes.append(
                    f"{storage}: {test} takes {times:.3f} times what it takes of {arguments.dense}"
                )
            for backend, theirs in rounds.items():
                for test in theirs[0]:
                    row = {"storage": storage, "backend": backend, "test": test}
                    for key in ["ts", "ts_per_cpu"]:
                        ours_are, theirs_are = (
                            [one[test][f"median_{key}"] for one in side] for side in (ours, theirs)
                        )
                        row[f"ours_{key}"] = statistics.median(ours_are)
                        row[f"theirs_{key}"] = statistics.median(theirs_are)
                        # Round by round, since what disturbs one disturbs its neighbour.
                        row[f"ratio_{key}"] = statistics.median(
                            one / other for one, other in zip(ours_are, theirs_are)
                        )
                    results.append(row)
    print(f"{arguments.shape}, random weights, {arguments.threads} threads for llama.cpp, ", end="")
    print(f"medians of {arguments.rounds} interleaved rounds\n")
    print(f"{'':26}{'AutoGLM':>18}{'llama.cpp':>18}{'ratio':>18}")
    print(f"{'weights':8}{'backend':8}{'test':10}" + 3 * f"{'tok/s':>9}{'/CPU-s':>9}")
    for row in results:
        print(
            f"{row['storage']:8}{row['backend']:8}{row['test']:10}"
            f"{row['ours_ts']:9.2f}{row['ours_ts_per_cpu']:9.2f}"
            f"{row['theirs_ts']:9.2f}{row['theirs_ts_per_cpu']:9.2f}"
            f"{row['ratio_ts']:9.3f}{row['ratio_ts_per_cpu']:9.3f}"
        )
    print("\n" + "\n".join(notes))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one round of llama.cpp")
    one.add_argument("model")
    one.add_argument("--backend", choices=BACKENDS, default="cpu")
    both = commands.add_parser("compare", help="interleaved rounds of both")
    both.add_argument("--bench", default="target/debug/autoglm-bench", help="our binary")
    both.add_argument("--shape", default="glm-0.3b")
    both.add_argument("--dense", help="a shape whose tokens ours are set beside, too")
    both.add_argument("--storages", default="q4_0,q8_0,bf16")
    both.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=["cpu"], help="of llama.cpp"
    )
    both.add_argument("--rounds", type=int, default=5)
    both.add_argument("--json", help="where to write the result")
    for command in (one, both):
        command.add_argument("--prompt", type=int, default=512)
        command.add_argument("--tokens", type=int, default=64)
        command.add_argument("--batch", type=int, default=16)
        command.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    {"run": run, "compare": compare}[arguments.command](arguments)


main()
