"""kill -9 of the prefill module while it streams KV, and of the decode module while it streams tokens."""

import itertools
import os
import signal

import pytest

from tests.integration.kill_nodes import PROMPT_S, balanced, clusters, returned, wait_for

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.deadline(150),
    pytest.mark.promise("P1", "P4"),
]
cluster = pytest.fixture(clusters)
LONG = {"prompt": 1200, "new": 20}
KV_MESSAGES = 1200 // 8 * 3  # of one LONG prompt: chunks of 8 tokens, 3 layers

YAML = """
version: 1
channels:
  generate: {{type: llm.generate, reply: llm.token, pattern: request, class: token}}
  prompts: {{type: llm.prompt, pattern: queue, delivery: at_least_once, class: token, deadline: 30s}}
  kv: {{type: llm.kv_layer, pattern: stream, delivery: at_least_once, class: bulk}}
  prefilled: {{type: llm.prefilled, pattern: stream, delivery: at_least_once, class: token}}
  cancels: {{type: llm.cancel, pattern: queue, class: control, deadline: 5s}}
  other: {{type: kill.part, pattern: stream, delivery: at_least_once}}
modules:
  prefill: {{class: "fabric_modules.prefill:Prefill", node: a, config: {{model: "{model}", threads: 1, chunk: 8}}}}
  decode: {{class: "fabric_modules.decode:Decode", node: b, config: {{model: "{model}", threads: 1, batch: exact}}}}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A seeded three-layer Llama on disk: real code paths, milliseconds a step."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        initializer_range=0.6,
    )
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def pair(cluster, tiny):
    """Two nodes with prefill on a and decode on b, and traffic on another channel from a to b."""
    a = cluster.node("a")
    b = cluster.node("b", join=a)
    a.call("apply", YAML.format(model=tiny))
    wait_for("modules ready", lambda: states(a) == {"prefill": "ready", "decode": "ready"}, 60.0)
    other = cluster.worker(b, "consume", "other-in", channel="other")
    other.wait_for("ready")
    cluster.worker(a, "produce", "other-out", channel="other", interval_s=0.02)
    other.wait_for("got", 5, 20.0)
    return a, b, other


def states(node):
    return {r["name"]: r["state"] for r in node.call("ls", "module")}


def pid_of(node, module):
    return next(r["pid"] for r in node.call("ls", "module") if r["name"] == module)


def generate(cluster, node, name, jobs):
    return cluster.worker(node, "generate", name, jobs=jobs)


def finished(worker, number, seconds=60.0):
    """The tokens of one job, or its typed error."""

    def end():
        rows = [r for r in worker.reports() if r.get("job") == number]
        last = rows[-1] if rows else {}
        return rows if "error" in last or "tokens" in last else None

    return wait_for(f"the end of job {number} of {worker.name}", end, seconds)[-1]


def flows_on(other, killed):
    """The other channel's messages came without a long pause around the kill."""
    after = other.wait_for("got", len(other.values("got")) + 20)
    times = [r["at"] for r in after if r["at"] >= killed - 0.5]
    assert max(b - a for a, b in itertools.pairwise(times)) < PROMPT_S


def test_prompt_of_a_killed_prefill_is_prefilled_again_to_the_same_tokens(cluster, pair):
    a, b, other = pair
    calm = generate(cluster, b, "calm", [LONG])
    expected = finished(calm, 0)["tokens"]
    calm.finish()
    before = a.footprint(), b.footprint()
    victim = generate(cluster, b, "victim", [LONG, {"prompt": 30, "new": 5}])
    victim.wait_for("asked")
    pid = pid_of(a, "prefill")
    wait_for("KV under way", lambda: kv_accepted(a) > KV_MESSAGES + 20)
    os.kill(pid, signal.SIGKILL)
    assert kv_accepted(a) < 2 * KV_MESSAGES, "killed in the middle of its KV"
    flows_on(other, victim.reports("asked")[0]["at"])
    end = finished(victim, 0)
    assert end.get("tokens") == expected, f"redone by the restarted module: {end}"
    assert len(finished(victim, 1)["tokens"]) == 5, (
        "the next request is served by the restarted module"
    )
    wait_for("a restarted prefill", lambda: pid_of(a, "prefill") not in (None, pid), 60.0)
    victim.finish()
    balanced(a)
    returned(a, before[0])
    returned(b, before[1])


def test_request_of_a_killed_decode_ends_typed_and_the_next_is_served(cluster, pair):
    a, b, other = pair
    victim = generate(cluster, b, "victim", [{"prompt": 20, "new": 2000}, {"prompt": 20, "new": 5}])
    victim.wait_for("token", 10, 60.0)
    killed = victim.reports("token")[-1]["at"]
    pid = pid_of(a, "decode")
    os.kill(pid, signal.SIGKILL)
    flows_on(other, killed)
    end = finished(victim, 0)
    assert end["error"] in ("peer_lost", "path_broken") and end["at"] - killed < PROMPT_S
    assert len(finished(victim, 1)["tokens"]) == 5, "served by the restarted module"
    wait_for("a restarted decode", lambda: pid_of(a, "decode") not in (None, pid), 60.0)
    balanced(a)


def kv_accepted(node):
    rows = [r for r in node.call("ls", "channel") if r["name"] == "kv"]
    return rows[0]["accepted"] or 0 if rows else 0
