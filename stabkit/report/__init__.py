"""Diagnosis to something to look at: one file per medium. Rendering only; nothing is computed here."""
