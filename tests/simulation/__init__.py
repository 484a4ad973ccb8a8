"""Cores that are real, everything around them simulated: a seed decides what happens, and replays it."""
