"""The simulator: a fleet in virtual time, every fault that can be thought of, and one seed that says which."""
