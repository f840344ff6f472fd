# Real targets come from the house; `build` takes a lock so that two builds never share a folder.
PY := .venv/bin/python
build:
	flock /tmp/fabricd-build.lock .venv/bin/pip install -q --no-build-isolation --no-deps -e .
