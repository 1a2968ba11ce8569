"""The benches of `raggd bench`, a file each; `registry.py` names them."""
