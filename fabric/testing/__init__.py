"""Test tools shipped with the fabric: conformance suites and fault injection. Imported by tests only."""
