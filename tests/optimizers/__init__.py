"""Every optimizer: torch's, other packages' and such as people write themselves, each held against what it really did."""
