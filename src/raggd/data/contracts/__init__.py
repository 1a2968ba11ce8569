"""Contracts: what an answer is to look like, shown by examples alone.

A contract is a pure function from an answered question and its passages to the question as asked,
the passages shown and the answer wanted, with a check of what a model wrote. A user's own contract
is a few demonstrations and nothing else; these are what a model learns from to follow them.
"""
