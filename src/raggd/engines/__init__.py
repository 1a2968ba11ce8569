"""Plugins for engines that serve the backbone already."""
