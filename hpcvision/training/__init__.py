"""Training: one loop for every task. Read loop.py first."""
