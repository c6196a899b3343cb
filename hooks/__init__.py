"""The recorders: the only room that needs torch, and the only one that touches the user's objects.

Each recorder is one file that says what it patches and what it sees. `dispatch` holds the patches and the guard that keeps
training safe, `monitor` turns what the recorders saw into one record per step.
"""
