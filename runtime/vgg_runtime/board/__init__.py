"""The machine: what it is, what state it is in, which kinds of core there are."""
