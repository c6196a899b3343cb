"""Diagnosis to something to look at: one file per medium. Rendering only; no verdict is made here."""
