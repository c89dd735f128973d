"""llama.cpp's processor backend beside autoglm-bench model: same machine, weights and work.

  python bench/peers/compare.py run MODEL.gguf ...     one round of llama.cpp, as JSON
  python bench/peers/compare.py compare ...            interleaved rounds of both, with ratios

llama.cpp comes as the PyPI package llama-cpp-python; `make bench-peers` installs it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(arguments):
    """pp, tg and batched tg, as llama-bench and llama-batched-bench time them."""
    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(arguments.model.encode(), model_params)
    if not model:
        sys.exit(f"llama.cpp can't load {arguments.model}")
    params = llama.llama_context_default_params()
    params.n_batch = params.n_ubatch = max(arguments.prompt, arguments.batch)
    params.n_ctx = max(arguments.prompt, arguments.tokens) + arguments.batch * 64 + 256
    params.n_seq_max = arguments.batch
    params.kv_unified = True
    params.n_threads = params.n_threads_batch = arguments.threads
    context = llama.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp can't make a context")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(params.n_batch, 0, 1)

    def decode(tokens):
        """tokens: (sequence, position, is an output)"""
        batch.n_tokens = len(tokens)
        for i, (sequence, position, output) in enumerate(tokens):
            batch.token[i] = (position * 7919 + sequence * 31 + 1) % 30000
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = output
        if llama.llama_decode(context, batch):
            sys.exit("llama.cpp can't decode")
        llama.llama_synchronize(context)

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
        llama.llama_memory_clear(memory, True)
        answer(1, 2)
        llama.llama_memory_clear(memory, True)
        start, cpu = time.perf_counter(), cpu_seconds()
        work()
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        tests.append(
            {"test": name, "median_ts": num_tokens / wall, "median_ts_per_cpu": num_tokens / cpu}
        )
    print(json.dumps({"tests": tests}))


def compare(arguments):
    here = Path(__file__)
    storages = arguments.storages.split(",")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for storage in storages:
            model = Path(scratch) / f"{storage}.gguf"
            subprocess.run(
                [arguments.bench, "random-model", arguments.shape, model, "--storage", storage],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            sizes = ["--prompt", str(arguments.prompt), "--tokens", str(arguments.tokens)]
            report = Path(scratch) / "ours.json"
            ours = [arguments.bench, "model", model, *sizes, "--rounds", "1", "--contexts", "0"]
            ours += ["--batches", str(arguments.batch), "--json", report]
            theirs = [sys.executable, here, "run", model, *sizes]
            theirs += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
            rounds = {"ours": [], "theirs": []}
            for number in range(arguments.rounds):
                print(f"{storage}: round {number + 1} of {arguments.rounds}", file=sys.stderr)
                quiet = {"check": True, "capture_output": True}
                subprocess.run([str(part) for part in ours], **quiet)
                rounds["ours"].append(json.loads(report.read_text())["tests"])
                out = subprocess.run([str(part) for part in theirs], **quiet).stdout
                rounds["theirs"].append(json.loads(out.splitlines()[-1])["tests"])
            names = [test["test"] for test in rounds["theirs"][0]]
            for name in names:
                row = {"storage": storage, "test": name}
                for engine, tests in rounds.items():
                    found = [test for one in tests for test in one if test["test"] == name]
                    for key in ["median_ts", "median_ts_per_cpu"]:
                        row[f"{engine}_{key}"] = statistics.median(test[key] for test in found)
                # Round by round, since what disturbs one disturbs its neighbour.
                ratios = []
                for one, other in zip(rounds["ours"], rounds["theirs"]):
                    rate = {
                        id(tests): next(
                            test["median_ts_per_cpu"] for test in tests if test["test"] == name
                        )
                        for tests in (one, other)
                    }
                    ratios.append(rate[id(one)] / rate[id(other)])
                row["ratio_per_cpu"] = statistics.median(ratios)
                results.append(row)
    print(f"{arguments.shape}, random weights, {arguments.threads} threads for llama.cpp, ", end="")
    print(f"medians of {arguments.rounds} interleaved rounds\n")
    print(f"{'':8}{'':10}{'AutoGLM':>18}{'llama.cpp':>20}{'ratio':>8}")
    print(f"{'weights':8}{'test':10}{'tok/s':>9}{'/CPU-s':>9}{'tok/s':>11}{'/CPU-s':>9}{'/CPU-s':>8}")
    for row in results:
        print(
            f"{row['storage']:8}{row['test']:10}"
            f"{row['ours_median_ts']:9.2f}{row['ours_median_ts_per_cpu']:9.2f}"
            f"{row['theirs_median_ts']:11.2f}{row['theirs_median_ts_per_cpu']:9.2f}"
            f"{row['ratio_per_cpu']:8.3f}"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one round of llama.cpp")
    one.add_argument("model")
    both = commands.add_parser("compare", help="interleaved rounds of both")
    both.add_argument("--bench", default="target/debug/autoglm-bench", help="our binary")
    both.add_argument("--shape", default="glm-0.3b")
    both.add_argument("--storages", default="q4_0,q8_0,bf16")
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
