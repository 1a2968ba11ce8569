"""The same part files made by several processes or machines, through Ray."""
