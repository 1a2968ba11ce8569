"""Plug-ins for engines that serve the backbone themselves."""
