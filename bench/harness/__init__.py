"""The load harness: scenarios driven against any deployment in open loop, their figures, and what is said of them."""
