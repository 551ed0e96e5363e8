"""Scripts, not tests: they need the packages of the examples, and tests/test_reproductions.py runs them."""

collect_ignore_glob = ["*.py"]
