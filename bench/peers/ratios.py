"""Ours beside a peer's: what `autoglm-bench model --json` and a peer's own JSON say of one model.

  python3 bench/peers/ratios.py PEER.json NAME=OURS.json ...

A peer's JSON has "tests", each with "kind" (prompt, decode or batched), "seqs", "tokens" of all of
them and "median_tok_s"; decoding begins at an empty context.
"""

import json
import sys


def key_of_peer(test):
    """(tokens of a prompt, sequences that decode)"""
    if test["kind"] == "prompt":
        return test["tokens"], 0
    return 0, test["seqs"]


def key_of_ours(test):
    if test["n_depth"]:
        return None
    return (test["n_prompt"], 0) if test["n_prompt"] else (0, test["n_parallel"])


def name(key):
    num_prompt, num_sequences = key
    return f"prompt of {num_prompt}" if num_prompt else f"{num_sequences} at once"


def table(peer, ours):
    """Rows of text, one for each test that both took."""
    theirs = {key_of_peer(test): test["median_tok_s"] for test in peer["tests"]}
    columns = {}
    for title, report in ours:
        rates = {key_of_ours(test): test["median_ts"] for test in report["tests"]}
        columns[title] = {key: rate for key, rate in rates.items() if key in theirs}
    lines = [f"{'tokens/s':<16}{'peer':>10}" + "".join(f"{title:>28}" for title in columns)]
    for key, rate in theirs.items():
        if not any(key in rates for rates in columns.values()):
            continue
        cells = []
        for rates in columns.values():
            own = rates.get(key)
            cells.append(f"{'-' if own is None else f'{own:.1f} ({own / rate:.2f} of it)':>28}")
        lines.append(f"{name(key):<16}{rate:>10.1f}" + "".join(cells))
    # How much of its speed a model keeps at a long context.
    for title, report in ours:
        tests = [test for test in report["tests"] if test["n_parallel"] == 1 and test["n_gen"]]
        near = [test["median_ts"] for test in tests if not test["n_depth"]]
        for test in tests:
            if test["n_depth"] and near:
                times = near[0] / test["median_ts"]
                lines.append(f"{title}: a token at {test['n_depth']} takes {times:.2f} of one at 0")
    return lines


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    read = lambda path: json.load(open(path, encoding="utf-8"))
    pairs = [argument.split("=", 1) for argument in sys.argv[2:]]
    print("\n".join(table(read(sys.argv[1]), [(title, read(path)) for title, path in pairs])))


if __name__ == "__main__":
    main()
