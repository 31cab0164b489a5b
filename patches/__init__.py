"""Every symbol of SGLang that we touch, and why: the ledger that is checked at each start.

Each module lists `PATCHES`. After a change, and after the tests have passed on the installed host,
`python -m llada_sglang.compat --write` records the fingerprints.
"""
