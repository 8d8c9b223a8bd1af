"""Smaller networks: pruned or factorised, fitted in closed form, distilled."""
