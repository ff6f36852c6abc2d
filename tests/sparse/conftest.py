"""Scripts beside the tests, which run in a process of their own."""

collect_ignore = ["fuzz_cases.py", "fuzz_plain.py"]
