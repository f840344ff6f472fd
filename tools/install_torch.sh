#!/bin/sh
# Install the pinned torch into .venv, before everything else and with pip alone.
#
# Anything that asks for torch unpinned would otherwise choose it. Where pip resolves to the CUDA build this says
# so with its size first; on a machine without an NVIDIA driver it waits a few seconds so that it can be stopped.
set -eu
version=$1
pip=.venv/bin/pip
if .venv/bin/python -c "
import importlib.metadata as m, sys
sys.exit(m.version('torch').split('+')[0] != '$version')" 2>/dev/null; then
  echo "torch $version is here already"
  exit 0
fi
echo "asking which torch $version fits this machine …"
plan=$($pip install --dry-run --quiet --report - -c requirements.lock "torch==$version" | .venv/bin/python -c "
import json, sys
names = [i['metadata']['name'] + ' ' + i['metadata']['version'] for i in json.load(sys.stdin)['install']]
print(sum(n.startswith('nvidia-') for n in names), next((n for n in names if n.startswith('torch ')), 'torch'))")
cuda=${plan%% *}
if [ "$cuda" -gt 0 ]; then
  echo "pip resolves to the CUDA build (${plan#* } and $cuda nvidia packages): about 3 GB to download, 7 GB on disk."
  if [ ! -e /proc/driver/nvidia/version ] && [ ! -e /dev/nvidiactl ]; then
    echo "This machine shows no NVIDIA driver. A CPU build (about 200 MB) is used instead when pip finds one: put the"
    echo "wheel's folder or index into PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL. Ctrl-C within 10 s stops here."
    sleep 10
  fi
else
  echo "installing ${plan#* }, the CPU build: about 200 MB"
fi
$pip install --progress-bar on -c requirements.lock "torch==$version"
