"""Input/output pairs of the specification, answered by the public functions.

    python -m tests.protocol.golden [FILE.json] [--only AREA]

- `cases.json`   the pairs: `{id, area, name, input, expected[, settings, note]}`
- `runner`       runs cases, compares, reports
- `compare`      what counts as equal
- `answers_*`    one adapter per area: a case in, what our functions say out
"""
