"""A bundle and what it takes to run one of its models on a picture."""
