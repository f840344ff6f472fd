"""`fabricctl transform why` and `bench codec`: what is asked, and what is printed of it."""

import json

from fabric import errors


def test_why_says_what_was_chosen_with_every_term_and_the_reason(fabricctl, control):
    lines = fabricctl("transform", "why", "kv").out.splitlines()
    assert lines[0] == "prefill on a: compress, when: pays, where: remote"
    assert lines[1] == "7 encoded, 1 raw, 0 errors; 3.2 MiB sent for 4.5 MiB"
    assert lines[2].split()[0] == "CHOSEN" and lines[2].endswith("BECAUSE")
    for term in (
        "compress",
        "576.0 KiB",
        "1.1 MiB",
        "118.0 MB/s",
        "650.0 MB/s",
        "0.660",
        "it pays",
    ):
        assert term in lines[3]
    assert ("codec_why", "kv") in control.calls


def test_a_channel_without_a_codec_is_told_so(fabricctl, control, monkeypatch):
    monkeypatch.setattr("fabric.testing.fake_control.CODEC_WHY", [])
    assert "no sender of kv has a codec" in fabricctl("transform", "why", "kv").out


def test_codecs_are_measured_by_name_and_shown_with_what_pays_would_do(fabricctl, control):
    shown = fabricctl("bench", "codec", "kv", "--codec", "compress,quantize", "--seconds", "2")
    assert ("codec_bench", "kv", ["compress", "quantize"], 2.0) in control.calls
    first, second = shown.out.split("\n\n")
    assert "650.0 MB/s" in first and "1.5 GB/s" in first and "0.660" in first
    assert "compress" in second and "it pays" in second


def test_the_figures_are_there_as_json(fabricctl, control):
    rows = json.loads(fabricctl("bench", "codec", "kv", "-o", "json").out)
    assert rows[0]["ratio"] == 0.66 and rows[0]["pays"][0]["coded"] is True


def test_a_channel_that_is_not_is_an_error_with_the_fix(fabricctl, control, monkeypatch):
    async def refuse(channel):
        raise errors.ConfigError("channel 'vk' is not declared; did you mean 'kv'?", channel="vk")

    monkeypatch.setattr(control, "codec_why", refuse)
    shown = fabricctl("transform", "why", "vk")
    assert shown.status == 1 and "did you mean 'kv'" in shown.err
