"""Our engine beside others on one case, file to file: ``python -m evaluation benchmark``.

From what is asked to what is written: `groups` (which rows there are), `case` (the CT that every
system gets), `network` (the network that they share), `systems` (the rows' commands), `turns` (runs
them one after the other), `peak` (what the machine can do), `agreement` (of their labels), `table`.
`run` calls these. `published_recipe` and `nnunet_predictor` are the others, programs of their own.
"""
