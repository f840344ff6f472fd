"""Generated from `control.proto`; see `fabric/controlplane/api/generate.py`. Do not edit."""
