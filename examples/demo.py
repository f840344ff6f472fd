"""The main job: prefill on one node, decode on another, every answer checked against one process.

`make demo`. NETNS=1: two network namespaces (root). KEEP=1: leave it running. Exit status 0 only if every
answer is exact, the audit balances and nothing is left. The report is `build/demo/report.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from demo_nodes import Cluster, wait_until
from demo_prompts import PROMPTS
from demo_report import Question, build_report, channel_rows
from fabric_modules.model import (
    ChatTokenizer,
    ModelFiles,
    load_model,
    load_tokenizer,
    prepare_model,
)
from fabric_modules.types import Generate, Token

import fabric
from fabric.errors import FabricError

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "demo" / "report.json"
MODULES_READY_S = 120.0
ANSWER_S = 240.0
LINE_CHARACTERS = 72
_print_lock = threading.Lock()
_began = time.monotonic()


def say(text: str) -> None:
    """Print one line with the time since the start."""
    with _print_lock:
        print(f"[{time.monotonic() - _began:6.1f} s] {text}", flush=True)


def read_questions(tokenizer: ChatTokenizer, names: list[str], tokens_max: int) -> list[Question]:
    """Tokenise the prompts that `names` picks (none: all)."""
    return [
        Question(
            index,
            name,
            tokenizer.encode_chat([{"role": "user", "content": text}]),
            min(room, tokens_max),
        )
        for index, (name, text, room) in enumerate(PROMPTS)
        if not names or name in names
    ]


def read_options() -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name, _, _ in PROMPTS]
    options.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help=f"default all: {', '.join(names)}"
    )
    options.add_argument("--tokens", type=int, default=4096, help="most new tokens of an answer")
    options.add_argument("--report", type=Path, default=REPORT, help="where to write the report")
    found = options.parse_args()
    if unknown := set(found.prompts) - set(names):
        options.error(f"unknown prompt {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return found


def ask(requester: Any, question: Question, tokenizer: ChatTokenizer, eos: int) -> None:
    """Send one prompt and print its answer as it streams. Runs on its own thread."""
    import numpy

    request = Generate(
        request=f"demo-{os.getpid()}-{question.index}",
        tokens=numpy.array(question.tokens, dtype=numpy.int64),
        max_new_tokens=question.max_new_tokens,
        eos=eos,
    )
    began, shown = time.monotonic(), 0
    try:
        for token in requester.stream(request, deadline=ANSWER_S):
            if question.ttft_ms is None:
                question.ttft_ms = round((time.monotonic() - began) * 1000, 1)
            question.answer.append(token.token)
            text = tokenizer.decode(question.answer)
            if token.final or len(text) - shown >= LINE_CHARACTERS:
                say(
                    f"{question.name:>12} {len(question.answer):>3}/{question.max_new_tokens} | "
                    + text[shown:].replace("\n", " ⏎ ")
                )
                shown = len(text)
            if token.final:
                question.last = {
                    name: getattr(token, name)
                    for name in ("kv_bytes", "kv_messages", "kv_hidden_bytes", "prefill_us")
                }
        if question.last is None:
            question.error = "the stream ended without a final token"
    except FabricError as error:
        question.error = f"{type(error).__name__}: {error}"
    if question.error:
        say(f"{question.name:>12} FAILED: {question.error}")


def ask_all(cluster: Cluster, questions: list[Question], tokenizer: ChatTokenizer) -> None:
    """Send every prompt at once and wait for all answers."""
    eos = tokenizer.eos[0] if tokenizer.eos else -1
    say(
        f"asking {len(questions)} prompts at once ({', '.join(str(len(q.tokens)) for q in questions)} tokens)"
    )
    with fabric.attach("demo-client", socket=str(cluster.nodes[0].socket)) as port:
        requester = port.requester("generate", Generate, Token)
        threads = [
            threading.Thread(target=ask, args=(requester, q, tokenizer, eos), daemon=True)
            for q in questions
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + ANSWER_S
        for thread, question in zip(threads, questions, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                question.error = f"no answer within {ANSWER_S:.0f} s"


def compare(files: ModelFiles, questions: list[Question], tokenizer: ChatTokenizer) -> None:
    """Run the prompts in this process alone, and compare token for token."""
    from fabric_modules.reference import generate

    say(
        f"reference: the same prompts in this one process, float32, one thread, "
        f"{files.size_bytes >> 20} MiB of weights"
    )
    model = load_model(files, threads=1)
    eos = tokenizer.eos[0] if tokenizer.eos else -1
    for question in questions:
        began = time.monotonic()
        question.expected = generate(model, question.tokens, question.max_new_tokens, eos)
        verdict = "equal" if question.exact else f"DIFFERENT from token {question.first_difference}"
        say(
            f"reference {question.index + 1}/{len(questions)} {question.name:>12}: "
            f"{len(question.expected)} tokens in {time.monotonic() - began:.1f} s: {verdict}"
        )


def modules_state(cluster: Cluster) -> str | None:
    """Say which modules are not ready yet; None when all are."""
    rows = cluster.ask(cluster.nodes[0], "module", "ls") or []
    rows = rows.get("rows", rows) if isinstance(rows, dict) else rows
    waiting = [
        f"{row.get('name')} {row.get('state')}"
        for row in rows
        if row.get("state") not in ("ready", "running")
    ]
    if len(rows) < 2:
        waiting.append(f"{len(rows)} of 2 are known")
    return ", ".join(waiting) or None


def run_job(
    cluster: Cluster, options: argparse.Namespace
) -> tuple[list[Question], list[dict[str, Any]], dict[str, Any]]:
    """Everything between the start of the nodes and their stop."""
    files = prepare_model("smollm2", _progress)
    tokenizer = load_tokenizer(files)
    questions = read_questions(tokenizer, options.prompts, options.tokens)
    say(
        f"model {files.directory.name}: {files.size_bytes >> 20} MiB of float32 weights, mapped from {files.directory}"
    )
    say(
        "starting nodes a and b"
        + (
            " in two network namespaces"
            if cluster.use_namespaces
            else " on 127.0.0.1 and 127.0.0.2"
        )
    )
    cluster.start(os.environ.get("FABRIC_ENGINE_FAULT", ""))
    first = cluster.nodes[0]
    say("applying examples/disaggregated.yaml: prefill on a, decode on b")
    cluster.verb(first, "apply", str(ROOT / "examples" / "disaggregated.yaml"))
    wait_until("modules load the model", MODULES_READY_S, lambda: modules_state(cluster), say)
    ask_all(cluster, questions, tokenizer)
    compare(files, questions, tokenizer)
    topology = cluster.ask(first, "topology")
    audit = cluster.ask(first, "audit", check=False) or {}
    channels = channel_rows(topology, cluster.ask(first, "channel", "ls"))
    _show("fabricctl topology", cluster.verb(first, "topology"))
    for row in channels:
        paths = ", ".join(row["paths"]) or "paths closed since"
        say(
            f"channel {row['channel']:>10}: {row['messages']:>5} messages, {row['bytes']:>9} bytes over {paths}"
        )
    for link in topology["links"]:
        sent = int(link["bytes_sent"])
        say(f"link {link['source']} -> {link['target']} ({link['link']}): {sent} bytes sent")
    _show("fabricctl audit", cluster.verb(first, "audit", check=False))
    return questions, channels, audit


def main() -> int:
    """Run the demo; the process's exit status."""
    options = read_options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    cluster = Cluster(use_namespaces=os.environ.get("NETNS") == "1")
    questions: list[Question] = []
    channels: list[dict[str, Any]] = []
    audit: dict[str, Any] = {}
    status, keep = 1, os.environ.get("KEEP") == "1"
    try:
        questions, channels, audit = run_job(cluster, options)
        status = 0
    except KeyboardInterrupt:
        say("interrupted: stopping everything")
        status, keep = 130, False
    except (RuntimeError, OSError, ValueError, FabricError) as error:
        say(f"FAILED: {error}")
        keep = False
    except Exception:  # a bug here must not leave nodes running
        say("FAILED:\n" + traceback.format_exc())
        keep = False
    if keep and status == 0:
        return _leave_running(
            cluster,
            build_report(questions, channels, audit, [], [n.name for n in cluster.nodes]),
            options.report,
        )
    with _uninterrupted():
        say("stopping both nodes")
        problems = cluster.stop()
        if status != 0:
            cluster.end_stragglers()
        leftovers = problems + cluster.leftovers()
    report = build_report(
        questions, channels, audit, leftovers, [node.name for node in cluster.nodes]
    )
    good = _finish(report, options.report) and status == 0
    cluster.remove_folder(None if good else options.report.parent / "logs")
    return status if good or status else 1


def _finish(report: dict[str, Any], target: Path, kept: bool = False) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    nothing = "nothing (processes, sockets, shared memory, memfds, namespaces)"
    left = "not looked for, both nodes go on" if kept else ", ".join(report["leftovers"]) or nothing
    say(f"left behind: {left}")
    say(
        f"KV hidden behind prefill: {report['kv_hidden_fraction']:.1%} of the longest prompt's; "
        f"{report['kv_bytes']} bytes in {report['kv_messages']} messages over {report['kv_link'] or 'no link'}"
    )
    say(
        f"exact: {report['token_exact']}  balanced: {report['audit_balanced']}  clean: {not report['leftovers']}  "
        f"tokens: {report['tokens']}  report: {target}"
    )
    for line in report["differences"]:
        say(f"not exact: {line}")
    return bool(report["token_exact"] and report["audit_balanced"] and not report["leftovers"])


def _leave_running(cluster: Cluster, report: dict[str, Any], target: Path) -> int:
    good = _finish(report, target, kept=True)
    say("KEEP=1: both nodes go on. Look around:")
    for node in cluster.nodes:
        for words in ("topology", "audit", "channel ls", "module ls"):
            print(f"  {sys.executable} -m fabric.cli.main {words} --socket {node.socket}")
    print("Stop them:")
    for node in reversed(cluster.nodes):
        print(f"  {sys.executable} -m fabric.cli.main down --socket {node.socket}")
    for node in cluster.nodes:
        if node.namespace:
            print(f"  ip netns delete {node.namespace}")
    print(f"  rm -r {cluster.folder}", flush=True)
    return 0 if good else 1


def _show(title: str, text: str) -> None:
    with _print_lock:
        print(f"--- {title}\n{text.rstrip()}\n---", flush=True)


def _progress(what: str, done: int, total: int) -> None:
    say(what + (f": {done}/{total}" if total else ""))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _uninterrupted() -> Any:
    """Keep a second Ctrl-C from leaving things behind; every step inside has its own deadline."""
    old = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
