"""Our engine beside others on one case, file to file: ``python -m evaluation benchmark``.

From what is asked to what is written: `setting` (what can be asked for), `case` (the CT that every
system gets), `shared_network`, `systems` (the rows' commands), `turns` (runs them one after the
other), `peak` (what the machine can do), `rows` (what comes out), `agreement` (of their labels),
`table`. `run` calls these. `published_recipe` and `nnunet_predictor` are the others, programs of
their own; `program` is what they share.
"""
