"""The exact regime and its boundary (paper sections 3 and 4, appendices A to F).

One layer of linear self-attention on tokens (x1, x2, y) is one gradient step of the unified
linearized predictor ``W1 x1 + W2 x2``. `attention` is the layer with Lemma 1's and GD++'s weights,
`verify` holds it against the steps and their oracle. `tasks` draws tasks, `training` trains on
them; `synthetic` and `tables` are one run each, `synthetic_figures` and `table_figures` the figures
of them (`figure`).
"""
