"""What stabkit costs and how often it is right, measured."""
